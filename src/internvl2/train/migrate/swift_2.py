"""ms-swift 2, of 2024: its flags by the names, values and defaults that version 3 has for them."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from internvl2.train.migrate.flags import Flag, Flags

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "model_id_or_path": "model",
        "dtype": "torch_dtype",
        "template_type": "template",
        "custom_train_dataset_path": "dataset",
        "custom_val_dataset_path": "val_dataset",
        "dataset_test_ratio": "split_dataset_ratio",
        "batch_size": "per_device_train_batch_size",
        "eval_batch_size": "per_device_eval_batch_size",
        "quantization_bit": "quant_bits",
        "bnb_4bit_comp_dtype": "bnb_4bit_compute_dtype",
        "lora_dropout_p": "lora_dropout",
        "lora_bias_trainable": "lora_bias",
        "lora_modules_to_save": "modules_to_save",
        "additional_trainable_parameters": "trainable_parameters",
        "use_flash_attn": "attn_impl",
        "preprocess_num_proc": "dataset_num_proc",
        "check_model_is_latest": "check_model",
        "only_save_model": "save_only_model",
    }
)
VALUES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": "none"},
        "quantization_bit": {"0": "none"},
        "max_length": {"-1": "none"},
        "lora_target_modules": {"all": "all-linear"},
    }
)
ITS_OWN = (
    *("sft_type", "train_dataset_sample", "val_dataset_sample", "dataset_sample"),
    *("check_dataset_strategy", "self_cognition_sample", "add_output_dir_suffix"),
)
"""Flags that version 3 has not and that were not renamed."""
DEFAULTS = {
    "max_length": "2048",
    "num_train_epochs": "1",
    "weight_decay": "0.01",
    "adam_beta2": "0.999",
    "max_grad_norm": "0.5",
    "lr_scheduler_type": "linear",
    "warmup_ratio": "0.05",
    "save_steps": "50",
}
"""As docs/source_en/LLM/Command-line-parameters.md had them in June 2024."""
FREEZING = ("freeze_vit", "freeze_aligner")


def as_version_3(flags: Flags) -> Flags:
    """The flags of version 2 as version 3 would be given them; those of version 3 as they are."""
    names = {flag.name for flag in flags.given}
    if not names & {*RENAMED, *ITS_OWN}:
        return flags
    has_model = bool(names & {"model", "model_id_or_path"})
    given = tuple(_translated(flag, has_model) for flag in flags.given)
    trains_all = "false" if flags.word("sft_type") == "full" else "true"
    defaults = {**flags.defaults, **DEFAULTS, **dict.fromkeys(FREEZING, trains_all)}
    return replace(flags, given=given, defaults=defaults)


def _translated(flag: Flag, has_model: bool) -> Flag:
    """By its new name; a type is the name of a model where no other is given."""
    if flag.name == "model_type" and not has_model:
        return replace(flag, name="model")
    words = VALUES.get(flag.name, {})
    values = tuple(words.get(value.lower(), value) for value in flag.values)
    return replace(flag, name=RENAMED.get(flag.name, flag.name), values=values)
