"""Flags of LoRA under the names that ms-swift and LLaMA-Factory give them.

Both begin with one way of training (full, adapters) and freeze parts in their own words; a part
with adapters trains nothing else of itself, there as here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.verdicts import Rule, Setting, Verdict, missing, needless, translated

ALL_LINEAR = ("all", "all-linear")
MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
INTERNLM = {"wqkv", "wo", "w1", "w2", "w3"}


@dataclass(frozen=True, slots=True)
class Names:
    """How a source calls what both have."""

    way: tuple[str, ...]
    """The flag that says full or lora."""
    vision: str
    projector: str
    decoder: str
    target: tuple[str, ...]
    bits: str
    """The flag that says how many bits of frozen matrices are kept."""

    def is_lora(self, flags: Flags) -> bool:
        """Whether adapters are trained."""
        return flags.word(*self.way) == "lora"


def adapter_rules(names: Names) -> dict[str, Rule]:
    """The rules of freezing and adapters."""
    of_adapters = _of_adapters(names)
    return {
        **dict.fromkeys(names.way, _way),
        names.bits: lambda flag, flags: _bits(names, flag, flags),
        names.vision: lambda flag, flags: _vision(names, flags),
        names.projector: lambda flag, flags: _projector(names, flags),
        names.decoder: lambda flag, flags: _decoder(names, flags),
        "lora_rank": of_adapters(lambda flag, flags: translated(*ranks(names, flags))),
        "lora_alpha": of_adapters(_alpha),
        "lora_dropout": of_adapters(
            lambda flag, flags: translated(Setting("lora.dropout", flag.number()))
        ),
        "use_dora": of_adapters(_flag("lora.dora")),
        "use_rslora": of_adapters(_flag("lora.rslora")),
        **{name: of_adapters(_target) for name in names.target},
    }


def ranks(names: Names, flags: Flags) -> tuple[Setting, ...]:
    """The width of the adapters of the parts that have them."""
    rank = flags.whole("lora_rank", 8)
    parts = {"lora.decoder_rank": names.decoder, "lora.vision_rank": names.vision}
    return tuple(Setting(key, rank) for key, part in parts.items() if not flags.is_true(part))


def _of_adapters(names: Names) -> Callable[[Rule], Rule]:
    def only(rule: Rule) -> Rule:
        return lambda flag, flags: (
            rule(flag, flags) if names.is_lora(flags) else needless("there are no adapters")
        )

    return only


def _way(flag: Flag, flags: Flags) -> Verdict:
    name = flag.text().lower()
    if name == "lora":
        return needless("lora_rank says it")
    if name == "full":
        return needless("what is not frozen is trained")
    if name == "freeze":
        return missing("the last layers of the decoder alone cannot be trained; all of it is")
    return missing("there are LoRA, DoRA, rsLoRA, QLoRA and full training; the recipe trains all")


def _bits(names: Names, flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing:
        return needless("it is off")
    if not names.is_lora(flags):
        return missing("matrices of 4 bits stand beside adapters alone")
    setting = Setting("quantize", "nf4")
    if flag.whole() != 4:
        return missing('quantize = "nf4" is what there is', setting)
    return translated(setting)


def _flag(key: str) -> Rule:
    return lambda flag, flags: translated(Setting(key, flag.truth()))


def _vision(names: Names, flags: Flags) -> Verdict:
    frozen = flags.is_true(names.vision)
    if names.is_lora(flags) and not frozen:
        return translated(*ranks(names, flags))
    return translated(Setting("freeze.vision", frozen))


def _decoder(names: Names, flags: Flags) -> Verdict:
    frozen = flags.is_true(names.decoder)
    if names.is_lora(flags) and not frozen:
        return translated(*ranks(names, flags))
    return translated(Setting("freeze.decoder", frozen))


def _projector(names: Names, flags: Flags) -> Verdict:
    """A projector has no adapters here: it is trained whole where theirs would have some."""
    setting = Setting("freeze.projector", flags.is_true(names.projector))
    if names.is_lora(flags) and not setting.value:
        return missing("a projector has no adapters; the recipe trains it whole", setting)
    return translated(setting)


def _alpha(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing or flag.number() == 2 * flags.whole("lora_rank", 8):
        return needless("it is twice the rank, as here unless given")
    return translated(Setting("lora.alpha", flag.number()))


def _target(flag: Flag, flags: Flags) -> Verdict:
    wanted = {name.rsplit(".", 1)[-1] for name in flag.texts()}
    if wanted <= set(ALL_LINEAR) or wanted in (MATRICES, INTERNLM):
        return needless("adapters are on every matrix of the layers of a part")
    return missing("adapters are on every matrix of the layers of a part, not on some")
