"""Flags and environment of ms-swift's `swift sft`."""

import re
from pathlib import Path

from internvl2.train.migrate.adapters import Names, adapter_rules
from internvl2.train.migrate.batch import Step, length, processes
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.inputs import REVISION, Found, is_path, local, model
from internvl2.train.migrate.trainer_flags import DEFAULTS as TRAINER_DEFAULTS
from internvl2.train.migrate.trainer_flags import NO_FP16, common_rules
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

NAME = "ms-swift"
LORA_RATE, FULL_RATE = "1e-4", "1e-5"
DEFAULTS = {
    **{name: value for name, value in TRAINER_DEFAULTS.items() if not name.endswith("_steps")},
    "learning_rate": LORA_RATE,
    "weight_decay": "0.1",
    "adam_beta2": "0.95",
    "lr_scheduler_type": "cosine",
    "save_steps": "500",
    "per_device_train_batch_size": "1",
    "tuner_type": "lora",
    "lora_rank": "8",
    "lora_alpha": "32",
    "freeze_vit": "True",
    "freeze_aligner": "True",
    "freeze_llm": "False",
    "max_length": "none",
    "environment.MAX_NUM": "12",
}
NAMES = Names(
    way=("tuner_type", "train_type", "sft_type"),
    vision="freeze_vit",
    projector="freeze_aligner",
    decoder="freeze_llm",
    target=("target_modules", "lora_target_modules"),
    bits="quant_bits",
)
USUAL_TOKENS = 8192
"""Of a pack where theirs takes samples as long as the model can read."""
USUAL_BATCH = 16
"""Samples of a step that theirs accumulates to unless told."""
OTHER_METHODS = (
    *("use_galore", "lisa_activated_layers", "lorap_lr_ratio", "target_regex", "modules_to_save"),
    *("freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio", "rlhf_type"),
    *("trainable_parameters", "trainable_parameters_regex", "target_parameters", "adapters"),
    *("new_special_tokens", "rope_scaling", "enable_dft_loss", "enable_channel_loss", "system"),
    *("external_plugins", "custom_register_path", "custom_dataset_info", "interleave_prob"),
    *("agent_template", "model_kwargs", "max_pixels", "max_epochs", "columns", "lora_bias"),
    *("zero_hpz_partition_size", "llamapro_num_new_blocks", "resume_only_model"),
)
HOW_THEIRS_RUNS = (
    *("attn_impl", "model_type", "lazy_tokenize", "dataset_num_proc", "load_from_cache_file"),
    *("streaming", "shuffle_buffer_size", "use_hf", "hub_token", "check_model", "add_version"),
    *("create_checkpoint_symlink", "padding_free", "padding_side", "template_backend"),
    *("model_name", "model_author", "device_map", "acc_strategy", "ignore_args_error"),
    *("packing_num_proc", "packing_cache", "download_mode", "val_dataset_shuffle"),
    *("response_prefix", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "tuner_backend"),
    *("eval_limit", "max_new_tokens", "temperature", "local_repo_path", "strict", "load_args"),
    *("lora_dtype", "check_dataset_strategy", "dataset_seed", "add_output_dir_suffix"),
    *("neftune_backend", "model_cache_dir", "logging_dir", "do_sample", "top_k", "top_p"),
    *("repetition_penalty", "num_beams", "eval_human", "hub_strategy", "push_hub_strategy"),
)


def rules() -> dict[str, Rule]:
    """What becomes of each flag and variable."""
    common = common_rules(step_of)
    return {
        **common,
        **dict.fromkeys(OTHER_METHODS, lost("there is nothing like it")),
        **dict.fromkeys(HOW_THEIRS_RUNS, nothing("how theirs runs, not what is learned")),
        **adapter_rules(NAMES),
        **_data(),
        **_quantization(),
        **_as_ours(),
        "model": model,
        "learning_rate": _learning_rate,
        "torch_dtype": _dtype,
        "gradient_checkpointing": _recompute,
        "vit_gradient_checkpointing": _recompute,
        "gradient_accumulation_steps": _accumulation,
        "vit_lr": _part_rate("vision"),
        "aligner_lr": _part_rate("projector"),
    }


def _as_ours() -> dict[str, Rule]:
    """What there is one way for, which is their default."""
    shuffled = expects(("true",), "samples are shuffled", "samples are always shuffled")
    return {
        "init_weights": expects(("true",), "down drawn, up 0", "adapters always begin as nothing"),
        "loss_scale": expects(
            ("default",), "all answers are learned", "every answer's tokens count alike"
        ),
        "model_revision": expects(("master", "main"), "it is the newest", REVISION),
        "optimizer": expects(
            ("multimodal", "default", ""), "parts may have rates of their own", "it is AdamW"
        ),
        "dataset_shuffle": shuffled,
        "train_dataloader_shuffle": shuffled,
        "norm_bbox": expects(
            ("norm1000",), "boxes are thousandths", "boxes are always thousandths of the sides"
        ),
        "use_chat_template": expects(
            ("true",), "the checkpoint says its template", "conversations are what is learned"
        ),
        "task_type": expects(("causal_lm",), "answers are learned", "only answers are learned"),
        "sequence_parallel_size": expects(("1",), "it is 1", "samples are not divided over GPUs"),
        "deepspeed_autotp_size": expects(("1",), "it is 1", "layers are not divided over GPUs"),
    }


def _data() -> dict[str, Rule]:
    size = length(step_of, NAME)
    return {
        "dataset": _sets("data"),
        "val_dataset": _sets("validation.data"),
        "split_dataset_ratio": lost("held-out samples are files of their own: [[validation.data]]"),
        "max_length": _max_length,
        "packing": _packing,
        "packing_length": size,
        "truncation_strategy": expects(
            ("delete",),
            "a sample that is too long is an error; skip_bad_samples = N leaves out up to N",
            "nothing is ever cut off; skip_bad_samples = N leaves out up to N that are too long",
        ),
        "template": nothing("the checkpoint says its template"),
        **dict.fromkeys(("train_dataset_sample", "val_dataset_sample", "dataset_sample"), _sample),
        "self_cognition_sample": expects(
            ("0",), "there are none", "download the set, put your names in, give it as data"
        ),
        "environment.MAX_NUM": _max_num,
        "environment.INPUT_SIZE": expects(
            ("448",), "the checkpoint says it", "tiles have the checkpoint's size, 448"
        ),
        "environment.VIDEO_MAX_NUM": expects(("1",), "a frame is one tile", "a frame is one tile"),
        "environment.VIDEO_SEGMENTS": _frames,
        "environment.USE_HF": nothing("checkpoints come from Hugging Face"),
        "environment.MAX_PIXELS": lost("pictures are not shrunk; MAX_NUM bounds their tiles"),
    }


def _quantization() -> dict[str, Rule]:
    only = "only nf4 is there"
    return {
        "quant_method": expects(("bnb", ""), "nf4", only),
        "bnb_4bit_quant_type": expects(("nf4",), "nf4", only),
        "bnb_4bit_use_double_quant": expects(
            ("true",), "scales are quantised too", "scales are always quantised too"
        ),
    }


def step_of(flags: Flags) -> Step:
    """What a step of theirs has; its accumulation fills steps of 16 unless given."""
    per_gpu = flags.whole("per_device_train_batch_size", 1)
    usual = -(-USUAL_BATCH // max(1, per_gpu * (processes(flags) or 1)))
    longest = flags.whole("max_length", USUAL_TOKENS)
    packed = flags.is_true("packing")
    return Step(
        per_gpu,
        flags.whole("gradient_accumulation_steps", usual),
        flags.whole("packing_length", longest) if packed else longest,
        packed,
        most_tiles=flags.whole("environment.MAX_NUM", 12),
    )


def _learning_rate(flag: Flag, flags: Flags) -> Verdict:
    """Its default depends on what is trained."""
    is_default = not flag.is_given and not NAMES.is_lora(flags)
    rate = float(FULL_RATE) if is_default else flag.number()
    return translated(Setting("optimizer.learning_rate", rate))


def _accumulation(flag: Flag, flags: Flags) -> Verdict:
    return common_rules(step_of)["per_device_train_batch_size"](flag, flags)


def _max_length(flag: Flag, flags: Flags) -> Verdict:
    if not flag.is_nothing:
        return length(step_of, NAME)(flag, flags)
    why = "theirs takes samples as long as the model can read unless --max_length is given"
    return translated(Setting("packing.tokens", USUAL_TOKENS, why))


def _packing(flag: Flag, flags: Flags) -> Verdict:
    if not flag.truth():
        return needless("samples are always packed; none sees another")
    return length(step_of, NAME)(flag, flags)


def _part_rate(part: str) -> Rule:
    def rule(flag: Flag, flags: Flags) -> Verdict:
        if flag.is_nothing:
            return needless("it is the learning rate")
        base = flags.find("learning_rate")
        whole = _learning_rate(base, flags).settings[0].value if base is not None else 1e-4
        why = f"{flag.value} / {whole:g}"
        return translated(Setting(f"optimizer.{part}_rate", round(flag.number() / whole, 6), why))

    return rule


def _dtype(flag: Flag, flags: Flags) -> Verdict:
    name = flag.text().lower()
    if name == "bfloat16" or flag.is_nothing:
        return needless("bf16 wherever the device is good at it, with exact fp32 sums of updates")
    if name != "float32":
        return missing(NO_FP16)
    return translated(Setting("dtype", name))


def _recompute(flag: Flag, flags: Flags) -> Verdict:
    both = flags.is_true("gradient_checkpointing") if flags.find("gradient_checkpointing") else True
    own = flags.find("vit_gradient_checkpointing")
    vision = both if own is None or own.is_nothing else own.truth()
    return translated(
        Setting("recompute.vision", float(vision)), Setting("recompute.decoder", float(both))
    )


def _max_num(flag: Flag, flags: Flags) -> Verdict:
    return translated(Setting("max_tiles", flag.whole()))


def _frames(flag: Flag, flags: Flags) -> Verdict:
    named = flags.find("dataset")
    if named is None:
        return needless("there are no data")
    return translated(*_sets("data")(named, flags).settings)


def _sets(key: str) -> Rule:
    def rule(flag: Flag, flags: Flags) -> Verdict:
        if flag.is_nothing or not flag.values:
            return needless("it names none")
        found = [_set(name, flags) for name in flag.texts()]
        tables = [item.table for item in found if item.table]
        faults = [item.fault for item in found if item.fault]
        settings = (Setting(key, tables),) if tables else ()
        return missing("; ".join(faults), *settings) if faults else translated(*settings)

    return rule


def _sample(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing or flag.number() < 0:
        return needless("all samples are taken")
    return missing("say it of each file, after its name: FILE#1000")


def _set(name: str, flags: Flags) -> Found:
    """A file, of which `#1000` takes so many samples; sets of hubs must be downloaded first."""
    path, _, count = name.partition("#")
    most = int(count) if re.fullmatch(r"\d+", count) else None
    if not is_path(path) and not Path(path).exists():
        return Found({}, f"{path} is a set of a hub: download it and name its files in [[data]]")
    found = local(Path(path), most=most)
    frames = flags.whole("environment.VIDEO_SEGMENTS", 8)
    extra = {"num_frames": frames} if frames != 8 and found.table else {}
    return Found(found.table | extra, found.fault)
