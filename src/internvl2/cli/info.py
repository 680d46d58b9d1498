"""`internvl2 info`: what a model is, or what a device would compute it with.

A model is described from the family table or from its own files.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from internvl2.checkpoint.hub import EMBEDDED, resolve
from internvl2.cli.about_adapter import AboutAdapter, describe_adapter
from internvl2.cli.loading import require_model
from internvl2.cli.options import AdapterName, Dtype, as_typed

if TYPE_CHECKING:
    from internvl2.config import InternVLConfig

MIB, GIB = 2**20, 2**30
BF16_BYTES = 2
PICTURE_TILES = 13
"""Twelve tiles and their thumbnail, the largest picture by default."""


OPTIONAL_DEVICE: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs=(0, 1),
    metavar="[DEVICE]",
    instance_from_str=lambda words: words[0] if words else "",
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [value] if value else [],
)
"""None where `--device` is not given, an empty name where it stands alone."""


@dataclass(frozen=True)
class Info:
    """Say what a model is: shape, parameters, memory, template; or what a device runs it with."""

    model: Annotated[Positional[str], arg(metavar="NAME|PATH")] = EMBEDDED
    """Short name (internvl2-2b), hub id, or directory of a model or adapter; nano is built in."""
    adapter: AdapterName = None
    """Directory of an adapter for the model, to describe both."""
    device: Annotated[str | None, OPTIONAL_DEVICE] = None
    """Say instead what this device would answer with, and why; the best one there is unless named:
    cpu, cuda, cuda:1, npu or mps."""
    dtype: Annotated[Dtype | None, as_typed("", *get_args(Dtype))] = None
    """With --device: the number format to compute in."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def run(self) -> int:
        """Prints the description."""
        if self.device is not None:
            return self._run_device(self.device)
        if self.dtype is not None:
            raise ValueError(f"--dtype {self.dtype} goes with --device")
        about, adapter = self._describe(require_model(self.model))
        if self.json:
            values = {} if about is None else asdict(about)
            values |= {} if adapter is None else {"adapter": asdict(adapter)}
            print(json.dumps(values, ensure_ascii=False))
        else:
            print("\n".join(each.lines() for each in (about, adapter) if each is not None))
        return 0

    def _run_device(self, name: str) -> int:
        from internvl2 import device as devices
        from internvl2.engine.device_report import read_facts, report

        if self.adapter is not None:
            raise ValueError("--device says what a model runs with, whatever the --adapter")
        config = _config(require_model(self.model))
        facts = read_facts(devices.pick(name or None))
        found = report(facts, config.dtype, self.dtype, config.decoder.head_dim)
        print(json.dumps(found.as_json()) if self.json else found.lines())
        return 0

    def _describe(self, model: str) -> "tuple[About | None, AboutAdapter | None]":
        """The model and the adapter; an adapter whose base is not here is described alone."""
        from internvl2.checkpoint.adapter_config import is_adapter_directory

        if model == EMBEDDED or not is_adapter_directory(Path(model)):
            given = None if self.adapter is None else describe_adapter(Path(self.adapter))
            return describe(model), given
        if self.adapter is not None:
            raise ValueError(f"{model} is an adapter itself; one model takes one adapter")
        adapter = describe_adapter(Path(model))
        return None if adapter.base is None else _describe_known(adapter.base), adapter


@dataclass(frozen=True)
class Memory:
    """Bytes that an answer needs, in bf16."""

    weights: int
    """With the decoder's matrices in four bits where the checkpoint has them so."""
    cache_per_1000_tokens: int
    vision_peak: int
    """Most that the vision tower takes for a moment, for a picture of 13 tiles."""


@dataclass(frozen=True)
class About:
    """All that `info` says of a model."""

    name: str
    vision: dict[str, object]
    decoder: dict[str, object]
    tokens_per_tile: int
    max_context: int
    parameters: dict[str, int]
    memory: Memory
    template: str
    system_message: str
    special_tokens: dict[str, int | None]
    """Token and its id; None where the vocabulary is not here to ask."""
    quantization: str | None = None
    """In which few bits the checkpoint stores the decoder's matrices."""
    group_size: int | None = None
    """How many inputs share a scale there."""

    def lines(self) -> str:
        """The description for people."""
        counts = ", ".join(f"{part} {count:,}" for part, count in self.parameters.items())
        memory = self.memory
        held = f"{self.quantization}, groups of {self.group_size} (AWQ)"
        quantized = [f"  decoder held in {held}"] if self.quantization else []
        tokens = ", ".join(
            text if token_id is None else f"{text} {token_id}"
            for text, token_id in self.special_tokens.items()
        )
        return "\n".join(
            [
                self.name,
                f"  vision          {_fields(self.vision)}",
                f"  decoder         {_fields(self.decoder)}",
                f"  visual tokens   {self.tokens_per_tile} per tile",
                f"  context         {self.max_context:,} tokens",
                f"  parameters      {counts}",
                *quantized,
                f"  memory (bf16)   weights {_size(memory.weights)}, cache "
                f"{_size(memory.cache_per_1000_tokens)} per 1000 tokens, vision peak "
                f"{_size(memory.vision_peak)} for {PICTURE_TILES} tiles",
                f"  template        {self.template}",
                f"  system message  {self.system_message!r}",
                f"  special tokens  {tokens}",
            ]
        )


def describe(model: str) -> About:
    """A directory's own config.json wins over the family table."""
    from internvl2 import family
    from internvl2.processing.template import find_template

    config = _config(model)
    if model == EMBEDDED or Path(model).is_dir():
        directory = resolve(model)
        about = _about(model, config, _ids_from_files(directory, config))
        return _as_stored(about, directory, config)
    member = family.find(model)
    ids = _special_tokens(member.config)
    tokens = member.tokens
    ids |= {"<img>": tokens.image_start, "</img>": tokens.image_end, "<IMG_CONTEXT>": tokens.image}
    ids[find_template(member.config.template).end] = tokens.end_of_turn
    return _about(member.hub_id, member.config, ids)


def _config(model: str) -> "InternVLConfig":
    """A directory's own config.json, or the family table's."""
    from internvl2 import family
    from internvl2.checkpoint.config_files import read_config

    if model == EMBEDDED or Path(model).is_dir():
        return read_config(resolve(model))
    if Path(model).exists() or model.startswith((".", "/", "~")):
        raise ValueError(f"{model} is not the directory of a checkpoint")
    return family.find(model).config


def _as_stored(about: About, directory: Path, config: "InternVLConfig") -> About:
    """The same with what a checkpoint of four-bit weights takes."""
    if "quantization_config" not in (directory / "config.json").read_text(encoding="utf-8"):
        return about  # known without torch, which takes a second
    from internvl2.checkpoint.awq import read_awq

    described = read_awq(directory)
    if described is None:
        return about
    decoder = config.decoder
    heads = 2 * (decoder.num_heads + decoder.num_kv_heads) * decoder.head_dim
    matrices = decoder.num_layers * decoder.hidden_size * (heads + 3 * decoder.intermediate_size)
    scales = 2 * BF16_BYTES * matrices // described.group
    weights = about.memory.weights - matrices * BF16_BYTES + matrices // 2 + scales
    return replace(
        about,
        memory=replace(about.memory, weights=weights),
        quantization="int4",
        group_size=described.group,
    )


def _describe_known(base: str) -> About | None:
    """The model that an adapter names, if it is here or in the family table."""
    from internvl2 import family

    if base != EMBEDDED and not Path(base).is_dir():
        try:
            family.find(base)
        except ValueError:
            return None
    return describe(base)


def _about(name: str, config: "InternVLConfig", special_tokens: dict[str, int | None]) -> About:
    from internvl2 import family
    from internvl2.processing.template import find_template

    counts = family.parameters(config)
    template = find_template(config.template)
    system = template.default_system if config.system_message is None else config.system_message
    decoder = config.decoder
    per_token = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * BF16_BYTES
    return About(
        name=name,
        vision=_plain(asdict(config.vision)),
        decoder=_plain(asdict(decoder)),
        tokens_per_tile=config.tokens_per_tile,
        max_context=decoder.max_positions,
        parameters={**asdict(counts), "total": counts.total},
        memory=Memory(
            counts.total * BF16_BYTES,
            per_token * 1000,
            PICTURE_TILES * config.peak_values_per_tile * BF16_BYTES,
        ),
        template=config.template,
        system_message=system,
        special_tokens=special_tokens,
    )


def _special_tokens(config: "InternVLConfig") -> dict[str, int | None]:
    """The tokens that a prompt is built with."""
    from internvl2.processing.template import find_template

    template = find_template(config.template)
    openings = (template.system.token, template.user.token, template.assistant.token)
    return dict.fromkeys([*openings, template.end, "<img>", "</img>", "<IMG_CONTEXT>"])


def _ids_from_files(directory: Path, config: "InternVLConfig") -> dict[str, int | None]:
    from internvl2.checkpoint.companions import has_tokenizer
    from internvl2.processing.tokenizer import Tokenizer

    if not has_tokenizer(directory):
        return _special_tokens(config)
    tokenizer = Tokenizer.from_directory(directory)
    return {text: tokenizer.id_of(text) for text in _special_tokens(config)}


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _plain(fields: dict[str, object]) -> dict[str, object]:
    """The fields without what is unset."""
    return {name: value for name, value in fields.items() if value not in (None, (), {})}


def _fields(fields: dict[str, object]) -> str:
    """Name and number of the fields that people ask for; the whole is in `--json`."""
    shown = [f"{name} {value}" for name, value in fields.items() if not isinstance(value, dict)]
    return ", ".join(shown)
