"""What `internvl2 info` says of an adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AboutAdapter:
    """An adapter in PEFT's format."""

    name: str
    kind: str
    """LoRA or DoRA, and rsLoRA where the scale is its."""
    base: str | None
    """The model that it was trained on, where it says so."""
    base_fingerprint: str | None
    """Of the base's weights."""
    rank: int
    alpha: float
    dropout: float
    ranks: dict[str, tuple[int, ...]]
    """Of the adapted matrices in all layers, by their names without what is before the part."""
    replaced: tuple[str, ...]
    """Modules that were trained as a whole."""
    parameters: int

    def lines(self) -> str:
        """The description for people."""
        ranks = ", ".join(f"{name} {'/'.join(map(str, r))}" for name, r in self.ranks.items())
        replaced = [f"  trained whole   {', '.join(self.replaced)}"] if self.replaced else []
        return "\n".join(
            [
                self.name,
                f"  adapter         {self.kind}, rank {self.rank}, alpha {self.alpha:g}, "
                f"dropout {self.dropout:g}",
                f"  base            {self.base or 'not said'}",
                f"  ranks           {ranks}",
                *replaced,
                f"  parameters      {self.parameters:,}",
            ]
        )


def describe_adapter(directory: Path) -> AboutAdapter:
    """An adapter's directory, its numbers not read."""
    from internvl2.checkpoint.adapter_config import read_adapter_config
    from internvl2.checkpoint.lora_files import read_contents, read_fingerprint

    config, contents = read_adapter_config(directory), read_contents(directory)
    kind = ("DoRA" if config.dora else "LoRA") + (" (rsLoRA)" if config.rslora else "")
    return AboutAdapter(
        name=str(directory),
        kind=kind,
        base=config.base,
        base_fingerprint=read_fingerprint(directory),
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        ranks=_by_matrix(contents.ranks),
        replaced=config.whole or contents.replaced,
        parameters=contents.parameters,
    )


def _by_matrix(ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Every rank that a matrix has in some layer, from the lowest."""
    found: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        found.setdefault(_short(module), set()).add(rank)
    return {name: tuple(sorted(different)) for name, different in found.items()}


def _short(module: str) -> str:
    """`vision.attention.q_proj` or `decoder.mlp.up_proj`, whatever the layer."""
    path = module.split(".")
    if "multi_modal_projector" in path or "mlp1" in path:
        return f"projector.{path[-1]}"
    is_vision = path[0] == "encoder" or {"vision_tower", "vision_model"} & set(path)
    return ".".join(["vision" if is_vision else "decoder", *path[-2:]])
