"""Keys of LLaMA-Factory's YAML files, and flags of its command."""

import math
from pathlib import Path

from internvl2.train.migrate import llama_data
from internvl2.train.migrate.adapters import Names, adapter_rules
from internvl2.train.migrate.batch import Step, length
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.inputs import REVISION, model
from internvl2.train.migrate.trainer_flags import DEFAULTS as TRAINER_DEFAULTS
from internvl2.train.migrate.trainer_flags import common_rules
from internvl2.train.migrate.verdicts import (
    Rule,
    Setting,
    Verdict,
    expects,
    lost,
    missing,
    needless,
    nothing,
    translated,
)

NAME = "LLaMA-Factory"
DEFAULTS = {
    **TRAINER_DEFAULTS,
    "finetuning_type": "lora",
    "lora_rank": "8",
    "lora_dropout": "0.0",
    "cutoff_len": "2048",
    "freeze_vision_tower": "True",
    "freeze_multi_modal_projector": "True",
    "freeze_language_model": "False",
    "image_max_pixels": str(768 * 768),
}
NAMES = Names(
    way=("finetuning_type",),
    vision="freeze_vision_tower",
    projector="freeze_multi_modal_projector",
    decoder="freeze_language_model",
    target=("lora_target",),
    bits="quantization_bit",
)
TILE = 448 * 448
MOST_TILES = 12
"""What its plug-in for InternVL cuts pictures into, whatever they were shrunk to."""
OTHER_METHODS = (
    *("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_llama_pro", "use_dft_loss"),
    *("pissa_init", "loraplus_lr_ratio", "additional_target", "shift_attn", "mixture_of_depths"),
    *("use_muon", "train_on_prompt", "mask_history", "resize_vocab", "rope_scaling"),
    *("add_tokens", "add_special_tokens", "create_new_adapter", "adapter_name_or_path"),
    *("default_system", "tool_format", "interleave_probs", "use_asft_loss", "fp8"),
    *("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"),
)
HOW_THEIRS_RUNS = (
    *("overwrite_cache", "preprocessing_num_workers", "preprocessing_batch_size"),
    *("tokenized_path", "plot_loss", "flash_attn", "use_fast_tokenizer", "upcast_layernorm"),
    *("upcast_lmhead_output", "pure_bf16", "use_unsloth", "enable_liger_kernel"),
    *("cache_dir", "ray_run_name", "ray_num_workers", "streaming", "buffer_size", "hf_hub_token"),
    *("low_cpu_mem_usage", "offload_folder", "device_map", "use_v1_kernels", "use_unsloth_gc"),
    *("dataset_dir", "media_dir", "quantization_device_map", "compute_accuracy"),
    *("ignore_pad_token_for_loss", "eval_on_each_dataset"),
)


def rules() -> dict[str, Rule]:
    """What becomes of each key."""
    return {
        **common_rules(step_of),
        **dict.fromkeys(OTHER_METHODS, lost("there is nothing like it")),
        **dict.fromkeys(HOW_THEIRS_RUNS, nothing("how theirs runs, not what is learned")),
        **adapter_rules(NAMES),
        **_data(),
        "model_name_or_path": model,
        "stage": expects(("sft",), "fine-tuning is what there is", "only sft is there"),
        "quantization_method": expects(("bitsandbytes", "bnb"), "nf4", "only nf4 is there"),
        "quantization_type": expects(("nf4",), "nf4", "only nf4 is there"),
        "model_revision": lost(REVISION),
        "split_special_tokens": expects(("false",), "it is off", "special tokens are never split"),
        "double_quantization": expects(
            ("true",), "scales are quantised too", "scales are always quantised too"
        ),
        "disable_gradient_checkpointing": _no_recompute,
    }


def _data() -> dict[str, Rule]:
    size = length(step_of, NAME)
    held_out = "held-out samples are files of their own: [[validation.data]]"
    return {
        "dataset": llama_data.data("data"),
        "eval_dataset": llama_data.data("validation.data"),
        "template": nothing("the checkpoint says its template"),
        "cutoff_len": size,
        "packing": size,
        "neat_packing": nothing("no sample of a pack sees another"),
        "max_samples": _max_samples,
        "val_size": lost(held_out),
        "mix_strategy": expects(
            ("concat",), "sets are joined", "give each set its `repeat` in [[data]]"
        ),
        "image_max_pixels": _pixels,
        "image_min_pixels": nothing("pictures are scaled to whole tiles anyway"),
        "crop_to_patches": nothing("pictures are always cut into tiles"),
        "image_do_pan_and_scan": nothing("pictures are always cut into tiles"),
        "video_max_pixels": nothing("a frame is one tile"),
        "video_min_pixels": nothing("a frame is one tile"),
        "video_fps": lost("a video gives `num_frames` of its set, whatever its length"),
        "video_maxlen": lost("a video gives `num_frames` of its set: give it in [[data]]"),
    }


def step_of(flags: Flags) -> Step:
    """What a step of theirs has."""
    return Step(
        flags.whole("per_device_train_batch_size", 8),
        flags.whole("gradient_accumulation_steps", 1),
        flags.whole("cutoff_len", 2048),
        is_packed=flags.is_true("packing") or flags.is_true("neat_packing"),
        most_tiles=_most_tiles(flags),
    )


def _most_tiles(flags: Flags) -> int:
    return min(MOST_TILES, math.ceil(flags.whole("image_max_pixels", 768 * 768) / TILE))


def _pixels(flag: Flag, flags: Flags) -> Verdict:
    why = f"tiles that {flag.whole()} pixels fill; theirs makes up to {MOST_TILES} of the same"
    return translated(Setting("max_tiles", _most_tiles(flags), why))


def _max_samples(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing:
        return needless("all are taken")
    sets = flags.find("dataset")
    if sets is None:
        return needless("no sets are named")
    verdict = llama_data.data("data")(sets, flags)
    tables = [table for setting in verdict.settings for table in setting.value]
    if not tables or any(not _is_counted(table) for table in tables):
        return missing("give each set its `repeat`: these samples / all of its samples")
    return translated(*verdict.settings, note="the first ones of each set")


def _is_counted(table: dict[str, object]) -> bool:
    return Path(str(table["path"])).is_file()


def _no_recompute(flag: Flag, flags: Flags) -> Verdict:
    share = 0.0 if flag.truth() else 1.0
    return translated(Setting("recompute.vision", share), Setting("recompute.decoder", share))
