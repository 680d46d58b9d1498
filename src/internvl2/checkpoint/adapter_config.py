"""adapter_config.json, PEFT's description of an adapter: read with checks, and written.

What makes PEFT compute something else than low-rank adapters, rsLoRA or DoRA is an error: the file
would be read, and its weights would mean another model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from internvl2.checkpoint.fields import Section, read_json, write_json

T = TypeVar("T")

FILE = "adapter_config.json"
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initial values that leave the model itself as it is."""
_OTHER_KINDS = (
    *("alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "fan_in_fan_out"),
    "kasa_config",
    *("layer_replication", "lora_bias", "monteclora_config", "target_parameters"),
    *("trainable_token_indices", "use_bdlora", "use_qalora"),
)
"""Keys of PEFT's that change what is computed."""
_READ = (
    *("peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "lora_dropout", "use_dora"),
    *("use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "modules_to_save"),
    *("base_model_name_or_path", "revision"),
)
_OF_TRAINING = (
    *("auto_mapping", "peft_version", "task_type", "inference_mode", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "velora_config", "runtime_config"),
    "qalora_group_size",
)
"""Keys of PEFT's that say how an adapter came about, which its tensors or other keys show too."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter is and what it belongs to; names of modules are its base's."""

    rank: int
    alpha: float
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    ranks: Mapping[str, int] | None = None
    """Other ranks, by a regular expression for the end of a module's name."""
    alphas: Mapping[str, float] | None = None
    """Other alphas, in the same way."""
    targets: str | tuple[str, ...] = ()
    """The adapted modules: one regular expression, or ends of names."""
    whole: tuple[str, ...] = ()
    """Modules that are replaced, not adapted (PEFT's `modules_to_save`)."""
    base: str | None = None
    """The model that it was trained on: a directory, a hub id or a short name."""
    revision: str | None = None
    """The base's revision on the hub."""
    passed_over: tuple[str, ...] = ()
    """Keys that are not known here: those of a later PEFT may change nothing."""

    def rank_of(self, module: str) -> int:
        """The rank of one module's adapter."""
        return _first_match(self.ranks or {}, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of one module's adapter."""
        return _first_match(self.alphas or {}, module, self.alpha)


def is_adapter_directory(directory: Path) -> bool:
    """Whether a directory holds an adapter alone, without the model that it belongs to."""
    return (directory / FILE).is_file() and not (directory / "config.json").is_file()


def read_adapter_config(directory: Path) -> AdapterConfig:
    """The adapter_config.json in a directory."""
    if not (directory / FILE).is_file():
        raise FileNotFoundError(f"{directory} holds no {FILE}; it is not an adapter")
    section = read_json(directory / FILE)
    section.require("peft_type", "LORA")
    section.require("bias", "none", default="none")
    for key in _OTHER_KINDS:
        section.require(key, None, False, [], {})
    section.require("init_lora_weights", *_PLAIN_STARTS)
    return AdapterConfig(
        rank=section.count("r", 8),
        alpha=section.number("lora_alpha", 8.0),
        dropout=section.number("lora_dropout", 0.0),
        dora=section.flag("use_dora", False),
        rslora=section.flag("use_rslora", False),
        ranks={key: pattern.count(key) for key, pattern in _pattern(section, "rank_pattern")},
        alphas={key: pattern.number(key) for key, pattern in _pattern(section, "alpha_pattern")},
        targets=_targets(section),
        whole=_names(section, "modules_to_save"),
        base=_text(section, "base_model_name_or_path"),
        revision=_text(section, "revision"),
        passed_over=_unknown(section),
    )


def write_adapter_config(config: AdapterConfig, directory: Path) -> None:
    """Write the adapter_config.json that PEFT reads."""
    targets = config.targets
    values: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": config.base,
        "revision": config.revision,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _shortest(config.alpha),
        "lora_dropout": config.dropout,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
        "rank_pattern": dict(config.ranks or {}),
        "alpha_pattern": {key: _shortest(value) for key, value in (config.alphas or {}).items()},
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "modules_to_save": list(config.whole) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    write_json(directory / FILE, values)


def _unknown(section: Section) -> tuple[str, ...]:
    known = {*_READ, *_OF_TRAINING, *_OTHER_KINDS}
    given = {key for key, value in section.values.items() if value not in (None, False, [], {})}
    return tuple(sorted(given - known))


def _first_match(patterns: Mapping[str, T], module: str, usual: T) -> T:
    """The value of the first pattern that ends a module's name, as PEFT finds it."""
    found = (v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, usual)


def _pattern(section: Section, key: str) -> list[tuple[str, Section]]:
    """Every regular expression under a key, with the section that has its value."""
    if section.values.get(key) is None:
        return []
    inner = section.section(key)
    for expression in inner.values:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"{inner.place}: {expression!r} is no pattern: {error}") from None
    return [(expression, inner) for expression in inner.values]


def _targets(section: Section) -> str | tuple[str, ...]:
    value = section.values.get("target_modules")
    return value if isinstance(value, str) else _names(section, "target_modules")


def _names(section: Section, key: str) -> tuple[str, ...]:
    value = section.values.get(key)
    if value is not None and not (isinstance(value, list) and all(type(x) is str for x in value)):
        raise ValueError(f"{section.place}: {key} is {value!r}; it must be a list of names")
    return tuple(value or ())


def _text(section: Section, key: str) -> str | None:
    return section.text(key) if section.values.get(key) else None


def _shortest(number: float) -> float | int:
    """Whole numbers as such: other readers of the file expect them."""
    return int(number) if float(number).is_integer() else number
