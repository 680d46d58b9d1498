"""One tokenizer over every form in which the family's vocabularies are stored.

Ids equal those of the official slow tokenizers (transformers 4.37.2). Control tokens come from
templates, as `Piece`s with an id; text is encoded as text, whatever it looks like. The exceptions
are the tags with which the models write and read boxes and thoughts: those are content.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from internvl2.processing.subwords import (
    SPACE,
    LibrarySubwords,
    SentencePieceSubwords,
    Subwords,
    qwen2_definition,
)
from internvl2.processing.text_stream import TextStream, Utf8
from internvl2.processing.tokenizer_files import (
    AddedToken,
    DirectoryLayout,
    TokenizerFiles,
    read_json_object,
    read_tokenizer_files,
)

MARKUP = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<think>", "</think>")
"""Tokens that text may hold: grounding tags and the marks of a thought steer nothing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt before tokenisation: text, or a control token."""

    text: str
    token_id: int | None = None
    """The control token's id; None for text."""
    repeat: int = 1
    """How often the control token stands there."""
    is_target: bool = False
    """Whether the model should learn to write it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and which of them the model should learn to write."""

    token_ids: list[int]
    is_target: list[bool]


@dataclass(frozen=True, slots=True)
class _Segment:
    """A run of text between added tokens, or one added token."""

    text: str
    token: AddedToken | None = None
    repeat: int = 1
    flags: tuple[bool, ...] = (False,)
    """Whether each stretch of the text is a target."""
    borders: tuple[int, ...] = (0,)
    """Where in the text each stretch begins."""

    def with_text(self, text: str) -> "_Segment":
        """The same stretches over another text of the same length, or a shorter one."""
        return _Segment(text, None, 1, self.flags, self.borders)

    def after(self, prefix: str) -> "_Segment":
        """With a prefix that belongs to the first stretch."""
        borders = (0, *(border + len(prefix) for border in self.borders[1:]))
        return _Segment(prefix + self.text, None, 1, self.flags, borders)

    def without_leading_space(self) -> "_Segment":
        """The stretches of the text that remains."""
        text = self.text.lstrip()
        gone = len(self.text) - len(text)
        return _Segment(
            text, None, 1, self.flags, tuple(max(border - gone, 0) for border in self.borders)
        )


class _Chunk(NamedTuple):
    """A text that is encoded by itself."""

    text: str
    ids: Sequence[int]


class Tokenizer:
    """Text to ids and back, for one checkpoint."""

    def __init__(self, files: TokenizerFiles, subwords: Subwords) -> None:
        self.files = files
        self.subwords = subwords
        self.added = _all_added(files, subwords)
        self._by_id = {token.id: token for token in self.added.values()}
        self._bytes: dict[int, bytes] = {}
        """What tokens that were asked for stand for: it takes long to spell them anew each time."""
        self.named = frozenset([*files.named.values(), *files.additional_special])
        """Texts that the files name as special (`all_special_tokens` of transformers)."""
        self.special_ids = frozenset(
            token.id
            for token in self.added.values()
            if token.special or token.content in self.named
        )
        """What the official decoder may skip."""
        self.markup_ids = frozenset(self.added[text].id for text in MARKUP if text in self.added)
        self.is_llama = files.kind == "sentencepiece" and files.class_name == "LlamaTokenizer"
        self.spaces_every_run = (
            isinstance(subwords, SentencePieceSubwords)
            and subwords.dummy_prefix
            and not (self.is_llama and not files.legacy)
        )
        """Older SentencePiece tokenizers put a space before each run between added tokens."""
        self._markup = _matcher(text for text in MARKUP if text in self.added)
        self._any_added = _matcher(self.added)
        self._control_ids = self._controls()
        self._spelled = _matcher(self._spellings())
        self.bos_id = self._bos_id()

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """The tokenizer of a model directory."""
        files = read_tokenizer_files(directory)
        return cls(files, _read_subwords(files))

    def __len__(self) -> int:
        """One more than the largest id."""
        return max(self.subwords.size, max(self._by_id, default=-1) + 1)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, added or of the vocabulary; None where it is unknown."""
        if token in self.added:
            return self.added[token].id
        return self.subwords.id_of(token)

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool = False) -> list[int]:
        """The ids of a text; with `allow_special` literal added tokens become their ids."""
        segments = self._split(self._normalised(text), ((0, False),), allow_special)
        return self._encode(segments, guarded=not allow_special, add_bos=add_bos).token_ids

    def encode_pieces(self, pieces: Iterable[Piece], *, add_bos: bool = True) -> Encoded:
        """The ids of a prompt; text is merged across the borders of neighbouring pieces."""
        return self._encode(self._segments(pieces), guarded=True, add_bos=add_bos)

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of an answer; grounding tags and thinking marks stay, control tokens go."""
        stream = self.stream(skip_special=skip_special)
        return "".join([stream.add(token_id) for token_id in token_ids]) + stream.finish()

    def stream(self, *, skip_special: bool = True) -> TextStream:
        """Turns ids into text as they come, whole characters at a time, equal to `decode`."""
        skipped = self.special_ids - self.markup_ids if skip_special else frozenset()
        return TextStream(
            self.token_bytes,
            skipped=skipped,
            whole=self._by_id,
            utf8=self._utf8(),
            drop_first_space=self._drops_first_space(),
            clean_up_spaces=self.files.clean_up_spaces,
        )

    def save(
        self, directory: str | Path, layout: DirectoryLayout, chat_template: str | None = None
    ) -> None:
        """Writes the tokenizer files of a directory of this layout, with a Jinja chat template."""
        from internvl2.processing.tokenizer_writer import save_tokenizer

        save_tokenizer(self, directory, layout, chat_template)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text for which a token stands; an id beyond the vocabulary has none."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._by_id:
            return self._by_id[token_id].content.encode()
        return self.subwords.bytes_of(token_id) if token_id < self.subwords.size else b""

    def _utf8(self) -> Utf8:
        return Utf8(mark_every_byte=isinstance(self.subwords, SentencePieceSubwords))

    def _drops_first_space(self) -> bool:
        if isinstance(self.subwords, SentencePieceSubwords):
            return self.is_llama or self.spaces_every_run
        return isinstance(self.subwords, LibrarySubwords) and not self.subwords.byte_level

    def _controls(self) -> frozenset[int]:
        """Ids that plain text must not become, even where the vocabulary spells them out."""
        known = {token.id for token in self.added.values()} - self.markup_ids
        for text in ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"):
            token_id = self.subwords.id_of(text)
            known |= {token_id} if token_id is not None else set()
        return frozenset(known)

    def _spellings(self) -> Iterable[str]:
        """Texts that the vocabulary itself would turn into a control token."""
        inside = [token_id for token_id in self._control_ids if token_id < self.subwords.size]
        spelled = [self.subwords.bytes_of(token_id).decode(errors="ignore") for token_id in inside]
        return [text for text in spelled if len(text) > 1]

    def _bos_id(self) -> int | None:
        add = self.files.add_bos
        if add is None:
            add = self.files.kind == "sentencepiece" or self._post_processor_adds_bos()
        bos = self.files.named.get("bos_token")
        return self.id_of(bos) if add and bos else None

    def _post_processor_adds_bos(self) -> bool:
        if self.files.kind != "tokenizer_json":
            return False
        definition = read_json_object(self.files.directory / "tokenizer.json")
        bos = self.files.named.get("bos_token", "")
        return bool(bos) and f"'{bos}'" in str(definition.get("post_processor"))

    def _segments(self, pieces: Iterable[Piece]) -> list[_Segment]:
        segments: list[_Segment] = []
        run: list[Piece] = []
        for piece in [*pieces, None]:
            if piece is not None and piece.token_id is None:
                run.append(piece)
                continue
            segments += self._split_run(run)
            run = []
            if piece is not None and piece.token_id is not None:
                token = self._by_id.get(piece.token_id) or AddedToken(piece.text, piece.token_id)
                segments.append(_Segment(piece.text, token, piece.repeat, (piece.is_target,)))
        return segments

    def _split_run(self, run: Sequence[Piece]) -> list[_Segment]:
        stretches, texts, position = [], [], 0
        for piece in run:
            stretches.append((position, piece.is_target))
            texts.append(self._normalised(piece.text))
            position += len(texts[-1])
        return self._split("".join(texts), stretches, False)

    def _normalised(self, text: str) -> str:
        """As Qwen2's slow tokenizer does before it looks for added tokens."""
        if self.files.kind != "vocab_merges" or text.isascii():
            return text
        return unicodedata.normalize("NFC", text)

    def _split(
        self, text: str, stretches: Sequence[tuple[int, bool]], allow_special: bool
    ) -> list[_Segment]:
        """The text cut at the added tokens that it may hold."""
        matcher = self._any_added if allow_special else self._markup
        segments, position = [], 0
        for match in matcher.finditer(text) if matcher else ():
            if match.start() > position:
                segments.append(_cut(text, position, match.start(), stretches))
            part = _cut(text, match.start(), match.end(), stretches)
            segments.append(_Segment(part.text, self.added[part.text], 1, part.flags[:1]))
            position = match.end()
        if position < len(text):
            segments.append(_cut(text, position, len(text), stretches))
        return segments

    def _encode(self, segments: list[_Segment], *, guarded: bool, add_bos: bool) -> Encoded:
        token_ids: list[int] = []
        is_target: list[bool] = []
        if add_bos and self.bos_id is not None:
            token_ids, is_target = [self.bos_id], [False]
        for segment in self._spaced(_strip_around(self._llama_spaced(segments))):
            if segment.token is not None:
                token_ids += [segment.token.id] * segment.repeat
                is_target += [segment.flags[0]] * segment.repeat
            else:
                chunks = self._chunks(segment.text, guarded)
                ids = list(chain.from_iterable(chunk.ids for chunk in chunks))
                token_ids += ids
                is_target += self._targets(segment, [chunk.text for chunk in chunks], len(ids))
        return Encoded(token_ids, is_target)

    def _llama_spaced(self, segments: list[_Segment]) -> list[_Segment]:
        """With the space that newer Llama tokenizers put before all (`tokenization_llama.py`).

        Before a special token it stands alone, but for those that the files name as special.
        """
        if not segments or not self.is_llama or self.files.legacy:
            return segments
        spaced = [s if s.token else s.with_text(s.text.replace(SPACE, " ")) for s in segments]
        first = segments[0].token
        if first is None:
            return [spaced[0].after(SPACE), *spaced[1:]]
        return spaced if first.content in self.named else [_Segment(SPACE), *spaced]

    def _spaced(self, segments: list[_Segment]) -> list[_Segment]:
        """With the space before every run of text, where this tokenizer writes one."""
        if not self.spaces_every_run:
            return segments
        return [segment if segment.token else segment.after(" ") for segment in segments]

    def _chunks(self, text: str, guarded: bool) -> list[_Chunk]:
        """The text cut so that none of it is read as a control token; seldom in more than one."""
        whole = self._chunk(text)
        if not guarded or self._control_ids.isdisjoint(whole.ids):
            return [whole]
        cuts = (
            [match.start() + 1 for match in self._spelled.finditer(text)] if self._spelled else []
        )
        chunks = [self._chunk(text[a:b]) for a, b in pairwise([0, *cuts, len(text)])]
        if all(self._control_ids.isdisjoint(chunk.ids) for chunk in chunks):
            return chunks
        return [self._chunk(character) for character in text]

    def _chunk(self, text: str) -> _Chunk:
        return _Chunk(text, self.subwords.encode(text))

    def _targets(self, segment: _Segment, chunks: list[str], count: int) -> list[bool]:
        if len(set(segment.flags)) == 1:
            return [segment.flags[0]] * count
        flags, position = [], 0
        for chunk in chunks:
            starts = [position + start for start in self.subwords.starts(chunk)]
            flags += [segment.flags[bisect_right(segment.borders, start) - 1] for start in starts]
            position += len(chunk)
        return flags


def _read_subwords(files: TokenizerFiles) -> Subwords:
    if files.kind == "sentencepiece":
        return SentencePieceSubwords(files.directory / "tokenizer.model")
    if files.kind == "vocab_merges":
        return LibrarySubwords(qwen2_definition(files), files.directory / "merges.txt")
    path = files.directory / "tokenizer.json"
    return LibrarySubwords(read_json_object(path), path)


def _all_added(files: TokenizerFiles, subwords: Subwords) -> dict[str, AddedToken]:
    """The added tokens by their text, with those that the files only name as special."""
    added = {token.content: token for token in files.added}
    for text in [*files.named.values(), *files.additional_special]:
        token_id = subwords.id_of(text)
        if text not in added and token_id is not None:
            added[text] = AddedToken(text, token_id)
    return added


def _matcher(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the texts, the longest first."""
    escaped = [re.escape(text) for text in sorted(texts, key=len, reverse=True)]
    return re.compile("|".join(escaped)) if escaped else None


def _cut(text: str, start: int, end: int, stretches: Sequence[tuple[int, bool]]) -> _Segment:
    """A part of a text, with the borders that lie in it."""
    first = bisect_right([border for border, _ in stretches], start) - 1
    inside = [(b, flag) for b, flag in stretches[first:] if b < end]
    borders = tuple(max(border - start, 0) for border, _ in inside)
    return _Segment(text[start:end], None, 1, tuple(flag for _, flag in inside), borders)


def _strip_around(segments: list[_Segment]) -> list[_Segment]:
    """Without the whitespace that some added tokens swallow beside themselves."""
    kept = list(segments)
    for index, segment in enumerate(segments):
        if segment.token is None:
            continue
        if segment.token.rstrip and index + 1 < len(kept) and kept[index + 1].token is None:
            kept[index + 1] = kept[index + 1].without_leading_space()
        if segment.token.lstrip and index and kept[index - 1].token is None:
            kept[index - 1] = kept[index - 1].with_text(kept[index - 1].text.rstrip())
    return [segment for segment in kept if segment.token or segment.text]
