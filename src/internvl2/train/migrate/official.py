"""Flags of OpenGVLab's internvl_chat_finetune.py, and of its siblings for packs and preferences."""

from internvl2.train.migrate.batch import Step, length
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.inputs import member, model
from internvl2.train.migrate.trainer_flags import DEFAULTS as TRAINER_DEFAULTS
from internvl2.train.migrate.trainer_flags import common_rules, recompute
from internvl2.train.migrate.verdicts import (
    Rule,
    Setting,
    Verdict,
    expects,
    lost,
    missing,
    needless,
    nothing,
    number,
    text,
    translated,
    truth,
    where,
)

NAME = "OpenGVLab's internvl_chat"
DEFAULTS = {
    **TRAINER_DEFAULTS,
    "max_seq_length": "8192",
    "dynamic_image_size": "False",
    "use_thumbnail": "False",
    "max_dynamic_patch": "12",
    "freeze_backbone": "False",
    "freeze_mlp": "False",
    "freeze_llm": "False",
    "drop_path_rate": "0.0",
}
PREFERENCES = ("internvl_chat_mpo", "internvl_chat_dpo")
MERGED_PARTS = "models are not put together here; name a whole one as `model`"
BY_CHECKPOINT = "the checkpoint's config.json says it"


def rules() -> dict[str, Rule]:
    """What becomes of each flag."""
    return {**common_rules(step_of), **model_rules(), **data_rules(NAME)}


def model_rules() -> dict[str, Rule]:
    """Of its ModelArguments."""
    return {
        "model_name_or_path": model,
        "vision_path": lost(MERGED_PARTS),
        "llm_path": lost(MERGED_PARTS),
        "mlp_path": lost(MERGED_PARTS),
        "freeze_llm": _freeze_llm,
        "freeze_backbone": _freeze_backbone,
        "freeze_mlp": truth("freeze.projector"),
        "unfreeze_vit_layers": _unfreeze_vit_layers,
        "unfreeze_lm_head": _unfreeze_lm_head,
        "use_llm_lora": _rank("lora.decoder_rank"),
        "use_backbone_lora": _rank("lora.vision_rank"),
        "vision_select_layer": expects(
            ("-1",), BY_CHECKPOINT, "give `select_layer` in the checkpoint's config.json"
        ),
        "grad_checkpoint": recompute,
        "drop_path_rate": number("drop_path"),
        "ps_version": expects(("v2",), BY_CHECKPOINT, "only v2 is there, which all releases have"),
        "use_fast_tokenizer": nothing("tokenizers are read from the checkpoint's own files"),
        "use_liger": nothing("the loss never holds all logits, and layers are compiled"),
        "loss_type": lost(NO_PREFERENCES),
        "sigmoid_loss_weight": lost(NO_PREFERENCES),
        "bco_pair_loss_weight": lost(NO_PREFERENCES),
        "rpo_alpha": lost(NO_PREFERENCES),
        "beta": lost(NO_PREFERENCES),
    }


NO_PREFERENCES = "there is no training on preferences; the recipe learns answers"


PACKS_DECIDE = "max_packed_tokens goes before it: what fits into a pack is learned whole"


def data_rules(tool: str) -> dict[str, Rule]:
    """Of its DataTrainingArguments, which `tool` has."""
    size = length(step_of, tool)
    return {
        **_packed_rules(size),
        "meta_path": data,
        "max_seq_length": where(_is_packed, nothing(PACKS_DECIDE), size),
        "conv_style": nothing("the checkpoint says its template"),
        "force_image_size": _tile_size,
        "down_sample_ratio": expects(
            ("0.5",), BY_CHECKPOINT, "a tile is 256 tokens in all releases"
        ),
        "pad2square": expects(("False",), "it is off", "pictures are not padded to squares"),
        "normalize_type": expects(
            ("imagenet",), "all releases have it", "pixels are scaled as in all releases: imagenet"
        ),
        "dynamic_image_size": _tiles,
        "max_dynamic_patch": _tiles,
        "min_dynamic_patch": _fewest_tiles,
        "use_thumbnail": expects(
            ("True",),
            BY_CHECKPOINT,
            "thumbnails are the checkpoint's to say: `use_thumbnail` in its config.json",
        ),
        "max_num_frame": data,
        "min_num_frame": lost("frames have one number: `num_frames` of a set"),
        "sampling_method": lost("frames are evenly spread"),
        "use_data_resampling": lost("give each set of the meta.json its `repeat_time`"),
    }


def step_of(flags: Flags) -> Step:
    """What a step of theirs has."""
    packed = _is_packed(flags)
    longest = flags.whole("max_packed_tokens" if packed else "max_seq_length", 8192)
    return Step(
        flags.whole("per_device_train_batch_size", 8),
        flags.whole("gradient_accumulation_steps", 1),
        longest,
        packed,
        flags.whole("num_images_expected", 40) if packed else None,
        most_tiles(flags),
    )


def most_tiles(flags: Flags) -> int:
    """One where pictures are not cut."""
    return flags.whole("max_dynamic_patch", 12) if flags.is_true("dynamic_image_size") else 1


def data(flag: Flag, flags: Flags) -> Verdict:
    """The meta.json is read as it is, its frames as many as the official code takes at most."""
    meta, frames = flags.find("meta_path"), flags.find("max_num_frame")
    if meta is None:
        return needless("there are no data")
    table: dict[str, str | int] = {"path": meta.text()}
    if frames is not None and not frames.is_nothing:
        table["num_frames"] = frames.whole()
    return translated(Setting("data", [table]))


def _packed_rules(size: Rule) -> dict[str, Rule]:
    way = nothing("how theirs fills packs; ours looks at packing.window samples")
    off = nothing("it counts with use_packed_ds alone")
    return {
        "use_packed_ds": where(_is_packed, size, nothing("samples are packed all the same")),
        "num_images_expected": where(_is_packed, size, off),
        "max_packed_tokens": where(_is_packed, size, off),
        "max_buffer_size": way,
        "log_freq": way,
        "strict_mode": way,
        "replacement": way,
        "allow_overflow": expects(
            ("False",), "no sample is ever cut here", "no sample is ever cut over two packs"
        ),
        "loss_reduction": where(_is_packed, text("packing.loss_weighting"), off),
        "loss_reduction_all_gather": expects(
            ("True",),
            "the loss of a step is one weighted mean over all processes",
            "the loss of a step is always one weighted mean over all processes",
        ),
        "split_annotations": nothing("files are read through an index, never as a whole"),
    }


def _is_packed(flags: Flags) -> bool:
    return flags.is_true("use_packed_ds")


def _tiles(flag: Flag, flags: Flags) -> Verdict:
    return translated(Setting("max_tiles", most_tiles(flags)))


def _tile_size(flag: Flag, flags: Flags) -> Verdict:
    """Adapters go with a base whose tiles stay as they are."""
    if flag.whole() == 448:
        return needless(BY_CHECKPOINT)
    if _has_adapters(flags):
        return missing("adapters learn for tiles of the checkpoint's size, 448 in all releases")
    return translated(Setting("tile_size", flag.whole()))


def _fewest_tiles(flag: Flag, flags: Flags) -> Verdict:
    """Adapters go with a base whose pictures are cut as they were."""
    if flag.whole() == 1 or not flags.is_true("dynamic_image_size"):
        return needless("the fewest tiles are 1")
    if _has_adapters(flags):
        return missing("adapters learn for pictures cut as the checkpoint's, which have no fewest")
    if flag.whole() > most_tiles(flags):
        return missing("it is above the most tiles of a picture")
    return translated(Setting("min_tiles", flag.whole()))


def _has_adapters(flags: Flags) -> bool:
    return max(flags.whole(f"use_{part}_lora", 0) for part in ("backbone", "llm")) > 0


def _rank(key: str) -> Rule:
    def rule(flag: Flag, flags: Flags) -> Verdict:
        if flag.whole() <= 0:
            return needless("there are no adapters")
        return translated(Setting(key, flag.whole()))

    return rule


def _freeze_llm(flag: Flag, flags: Flags) -> Verdict:
    if flags.whole("use_llm_lora", 0) > 0:
        return needless("a decoder with adapters trains nothing else")
    return translated(Setting("freeze.decoder", flag.truth()))


def _freeze_backbone(flag: Flag, flags: Flags) -> Verdict:
    if flags.whole("use_backbone_lora", 0) > 0:
        return needless("a vision tower with adapters trains nothing else")
    return translated(Setting("freeze.vision", flag.truth()))


def _unfreeze_vit_layers(flag: Flag, flags: Flags) -> Verdict:
    """-k are the last k layers; k are all but the first k."""
    first = flag.whole()
    if not first:
        return needless("no layer is unfrozen")
    if not flags.is_true("freeze_backbone"):
        return needless("the whole tower is trained")
    if first < 0:
        return translated(Setting("freeze.vision_last", -first))
    named = flags.find("model_name_or_path")
    known = member(named.text()) if named is not None else None
    if known is None:
        return missing("give freeze.vision_last, the number of last layers that are trained")
    last = max(0, known.config.vision.num_layers - first)
    return translated(Setting("freeze.vision_last", last))


def _unfreeze_lm_head(flag: Flag, flags: Flags) -> Verdict:
    frozen = flags.is_true("freeze_llm") or flags.whole("use_llm_lora", 0) > 0
    if flag.truth() and frozen:
        return translated(Setting("freeze.head", False))
    return needless("the head is trained with the decoder, and frozen with it")
