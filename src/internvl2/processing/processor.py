"""From a conversation to what the model reads: the one encoder of the package."""

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from internvl2.config import InternVLConfig
from internvl2.processing.conversation import Conversation, Message, Text
from internvl2.processing.image import Cutter, Grid, PictureOptions, choose_grid
from internvl2.processing.layout import ImageTokens, Layout, MediumSize
from internvl2.processing.media import Measured, MediaReader, Opened
from internvl2.processing.prompt import MediaSpan, Prompt
from internvl2.processing.template import THINKING, ChatTemplate, find_template
from internvl2.processing.tile_cache import TileCache
from internvl2.processing.tokenizer import Encoded, Tokenizer
from internvl2.processing.tokenizer_files import read_json_object

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What may differ from prompt to prompt."""

    max_tiles: int | None = None
    """Tile budget per picture; None takes the model's own."""
    max_context: int | None = None
    """Most tokens that the prompt may have."""
    fit: bool = False
    """Take fewer tiles per picture, where the prompt is too long, instead of an error."""
    add_generation_prompt: bool = True
    """Open the answer's turn where the last message is not an answer."""
    thinking: bool = False
    """Ask InternVL3.5 to think first."""
    digests: bool = True
    """Hash tiles that no cache keeps, so that a picture is known again."""

    def __post_init__(self) -> None:
        for name in ("max_tiles", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What a conversation would take."""

    tokens: int
    tiles: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """How each picture will be cut, grouped by part."""

    grids: tuple[tuple[Grid, ...], ...]

    def tiles(self, use_thumbnail: bool) -> int:
        """All tiles together."""
        return sum(grid.with_thumbnail(use_thumbnail) for part in self.grids for grid in part)


@dataclass(frozen=True, slots=True)
class _Written:
    """A prompt whose tiles are planned and not yet cut."""

    encoded: Encoded
    plan: _Plan


_Media = Sequence[Sequence[Opened | Measured]]


class Processor:
    """Encodes conversations for one model; knows its tokenizer, template and stop tokens."""

    def __init__(
        self,
        config: InternVLConfig,
        tokenizer: Tokenizer,
        *,
        generation_eos: Sequence[int] = (),
        frame_label: str | None = None,
        pictures: PictureOptions | None = None,
        tile_cache: TileCache | None = None,
    ) -> None:
        self.template: ChatTemplate = find_template(config.template)
        self.tokenizer = tokenizer
        self.image_tokens = _image_tokens(tokenizer, config.image_token_id)
        self.config = replace(config, image_token_id=self.image_tokens.context)
        self.pictures = pictures or PictureOptions()
        self.tile_cache = tile_cache
        """Keeps pictures that may come again; None cuts them each time."""
        self._cutter: Cutter | None = None
        controls = _control_ids(self.template, tokenizer)
        self.stop_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys([controls[self.template.end], *generation_eos])
        )
        """The closing token of a turn, and whatever else generation_config.json names."""
        self.layout = Layout(self.template, controls, self.image_tokens, frame_label)

    @classmethod
    def from_directory(
        cls,
        directory: str | Path,
        config: InternVLConfig,
        *,
        frame_label: str | None = None,
        pictures: PictureOptions | None = None,
        tile_cache: TileCache | None = None,
    ) -> "Processor":
        """The processor of a model directory: tokenizer files and generation_config.json."""
        return cls(
            config,
            Tokenizer.from_directory(directory),
            generation_eos=_generation_eos(Path(directory) / "generation_config.json"),
            frame_label=frame_label,
            pictures=pictures,
            tile_cache=tile_cache,
        )

    def changed(self, config: InternVLConfig, pictures: PictureOptions) -> "Processor":
        """The same tokenizer and template for tiles that are cut in another way."""
        other = copy(self)
        other.config, other.pictures = config, pictures
        return other

    def cutting_with(self, cutter: Cutter) -> "Processor":
        """The same, with pictures cut elsewhere where they are not too large for that."""
        other = copy(self)
        other._cutter = cutter
        return other

    def encode(self, conversation: Conversation, *, options: EncodeOptions | None = None) -> Prompt:
        """The prompt of a conversation; a missing last answer is left open for the model."""
        options = options or EncodeOptions()
        system, messages = self._split_system(conversation, options.thinking)
        parts = [part for message in messages for part in message.content]
        media = [part for part in parts if not isinstance(part, Text)]
        reader = self._reader()
        opened = [tuple(reader.open(part, options.max_tiles)) for part in media]
        written = self._write(system, messages, opened, options)
        return self._prompt(written.encoded, opened, written.plan, options.digests)

    def measure(
        self, conversation: Conversation, *, options: EncodeOptions | None = None
    ) -> PromptSize:
        """What `encode` would give, in numbers: headers of pictures are read, no pixel is."""
        options = options or EncodeOptions()
        system, messages = self._split_system(conversation, options.thinking)
        parts = [part for message in messages for part in message.content]
        media = [part for part in parts if not isinstance(part, Text)]
        reader = self._reader()
        sizes = [tuple(reader.measure(part, options.max_tiles)) for part in media]
        written = self._write(system, messages, sizes, options)
        tiles = written.plan.tiles(self.config.use_thumbnail)
        return PromptSize(len(written.encoded.token_ids), tiles)

    def _write(
        self,
        system: str,
        messages: Sequence[Message],
        media: _Media,
        options: EncodeOptions,
    ) -> _Written:
        """The prompt's ids, and how its pictures are cut so that it fits."""
        plan = self._plan(media, None)
        encoded = self._encode(system, messages, plan, options)
        if options.max_context is not None and len(encoded.token_ids) > options.max_context:
            plan = self._fitting(media, plan, len(encoded.token_ids), options)
            encoded = self._encode(system, messages, plan, options)
        return _Written(encoded, plan)

    def _split_system(
        self, conversation: Conversation, thinking: bool
    ) -> tuple[str, Sequence[Message]]:
        """The system text, and the turns."""
        _check_roles(conversation)
        if conversation and conversation[0].role == "system":
            text, turns = conversation[0].text, conversation[1:]
            return (f"{THINKING}\n\n{text}" if thinking else text), turns
        if thinking:
            return THINKING, conversation
        default = self.config.system_message
        return (self.template.default_system if default is None else default), conversation

    def _reader(self) -> MediaReader:
        return MediaReader(self.config, self.pictures, self.tile_cache, self._cutter)

    def _plan(self, opened: _Media, limit: int | None) -> _Plan:
        return _Plan(tuple(tuple(self._grid(one, limit) for one in part) for part in opened))

    def _grid(self, opened: Opened | Measured, limit: int | None) -> Grid:
        budget = opened.budget if limit is None else min(opened.budget, limit)
        if not self.config.dynamic_tiles:
            return Grid(1, 1)
        smallest = min(self.config.min_tiles, budget)
        width, height = opened.size
        return choose_grid(width, height, self.config.tile_size, smallest, budget)

    def _fitting(
        self,
        opened: _Media,
        plan: _Plan,
        length: int,
        options: EncodeOptions,
    ) -> _Plan:
        """The plan with the largest common tile budget that fits, or an error with the numbers."""
        per_tile = self.config.tokens_per_tile
        tiles = plan.tiles(self.config.use_thumbnail)
        text_tokens = length - tiles * per_tile
        room = ((options.max_context or length) - text_tokens) // per_tile
        highest = max((one.budget for part in opened for one in part), default=1)
        for limit in range(highest - 1, 0, -1):
            smaller = self._plan(opened, limit)
            if smaller.tiles(self.config.use_thumbnail) > room:
                continue
            numbers = _overflow(length, tiles, text_tokens, options.max_context)
            if not options.fit:
                raise ValueError(f"{numbers}; with max_tiles {limit} it would fit")
            logger.warning("%s; taking at most %d tiles per picture", numbers, limit)
            return smaller
        numbers = _overflow(length, tiles, text_tokens, options.max_context)
        pictures = sum(map(len, opened))
        raise ValueError(
            f"{numbers}; "
            + (
                f"there is room for {room} tiles, but {pictures} pictures take at least one each"
                if pictures and room >= 0
                else "shorten the text"
            )
        )

    def _encode(
        self, system: str, messages: Sequence[Message], plan: _Plan, options: EncodeOptions
    ) -> Encoded:
        sizes = [
            MediumSize(
                tuple(
                    grid.with_thumbnail(self.config.use_thumbnail) * self.config.tokens_per_tile
                    for grid in part
                )
            )
            for part in plan.grids
        ]
        answered = bool(messages) and messages[-1].role == "assistant"
        pieces = self.layout.pieces(
            system,
            messages,
            sizes,
            open_answer=options.add_generation_prompt and not answered,
        )
        return self.tokenizer.encode_pieces(pieces)

    def _prompt(
        self,
        encoded: Encoded,
        opened: Sequence[Sequence[Opened]],
        plan: _Plan,
        digests: bool,
    ) -> Prompt:
        pictures = [one for part in opened for one in part]
        grids = [grid for part in plan.grids for grid in part]
        cut = self._reader().cut_all(pictures, grids, digests)
        spans: list[MediaSpan] = []
        position, first_tile = 0, 0
        for digest, grid in zip(cut.digests, grids, strict=True):
            num_tiles = grid.with_thumbnail(self.config.use_thumbnail)
            start = encoded.token_ids.index(self.image_tokens.context, position)
            position = start + num_tiles * self.config.tokens_per_tile
            spans.append(
                MediaSpan(
                    start=start,
                    stop=position,
                    first_tile=first_tile,
                    num_tiles=num_tiles,
                    columns=grid.columns,
                    rows=grid.rows,
                    thumbnail=num_tiles > grid.tiles,
                    digest=digest,
                )
            )
            first_tile += num_tiles
        return Prompt(encoded.token_ids, encoded.is_target, cut.tiles, tuple(spans))


def _overflow(length: int, tiles: int, text_tokens: int, max_context: int | None) -> str:
    return (
        f"the prompt has {length} tokens ({text_tokens} without pictures, {tiles} tiles);"
        f" the context has room for {max_context}"
    )


def _check_roles(conversation: Conversation) -> None:
    for index, message in enumerate(conversation):
        if message.role == "system" and index:
            raise ValueError(f"message {index + 1} is a system message; only the first may be one")
        if message.role != "user" and any(not isinstance(p, Text) for p in message.content):
            raise ValueError(
                f"message {index + 1} ({message.role}) holds pictures; only users send them"
            )


def _control_ids(template: ChatTemplate, tokenizer: Tokenizer) -> dict[str, int]:
    openings = (template.system, template.user, template.assistant)
    texts = dict.fromkeys([*(opening.token for opening in openings), template.end])
    return {text: _control_id(tokenizer, text, f"template {template.name}") for text in texts}


def _image_tokens(tokenizer: Tokenizer, context: int | None) -> ImageTokens:
    if context is None:
        context = _control_id(tokenizer, "<IMG_CONTEXT>", "a picture")
    return ImageTokens(
        opening=_control_id(tokenizer, "<img>", "a picture"),
        context=context,
        closing=_control_id(tokenizer, "</img>", "a picture"),
    )


def _control_id(tokenizer: Tokenizer, text: str, purpose: str) -> int:
    token_id = tokenizer.id_of(text)
    if token_id is None:
        where = tokenizer.files.directory
        raise ValueError(f"the tokenizer in {where} has no token {text}, which {purpose} needs")
    return token_id


def _generation_eos(path: Path) -> list[int]:
    eos: Any = read_json_object(path, optional=True).get("eos_token_id")
    if eos is None:
        return []
    ids = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise ValueError(f"{path}: eos_token_id {eos!r} is neither an id nor a list of ids")
    return ids
