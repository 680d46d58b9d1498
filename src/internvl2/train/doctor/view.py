"""A prompt as text for people: what is read, what is learned, pictures as one word each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from internvl2.processing.prompt import MediaSpan, Prompt
from internvl2.processing.tokenizer import Tokenizer

LEARNED_OPENING, LEARNED_CLOSING = "{+", "+}"
"""Around what is learned, where there are no colours; as `wdiff` marks what is new."""
GREEN, PLAIN = "\x1b[1;32m", "\x1b[0m"
LONGEST = 1000
"""Characters; of a longer stretch the middle is left out where people read it."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring tokens of one kind."""

    kind: Literal["read", "learned", "picture"]
    text: str


def stretches(prompt: Prompt, tokenizer: Tokenizer) -> tuple[Stretch, ...]:
    """The whole prompt, control tokens included; the visual tokens of a picture are one stretch."""
    joined: list[Stretch] = []
    for piece in _pieces(prompt, tokenizer):
        if joined and joined[-1].kind == piece.kind != "picture":
            joined[-1] = Stretch(piece.kind, joined[-1].text + piece.text)
        elif piece.text:
            joined.append(piece)
    return tuple(joined)


def lines_of(parts: Sequence[Stretch], colour: bool) -> list[str]:
    """The stretches for a terminal, with nothing in them that would steer it."""
    opening, closing = (GREEN, PLAIN) if colour else (LEARNED_OPENING, LEARNED_CLOSING)
    text = ""
    for part in parts:
        shown = printable(shortened(part.text))
        # A colour would end with the line in some pagers, so each line has its own marks.
        marked = "\n".join(f"{opening}{line}{closing}" for line in shown.split("\n"))
        text += marked if part.kind == "learned" else shown
    return text.split("\n")


def _pieces(prompt: Prompt, tokenizer: Tokenizer) -> Iterator[Stretch]:
    """One per token or picture; half characters wait for their other half."""
    stream = tokenizer.stream(skip_special=False)
    places = {span.start - 1: span for span in prompt.media}
    position = 0
    while position < len(prompt.token_ids):
        if position in places:
            span = places[position]
            yield Stretch("picture", _name(span))
            position = span.stop + 1  # what closes a picture belongs to it
            continue
        kind = "learned" if prompt.is_target[position] else "read"
        yield Stretch(kind, stream.add(prompt.token_ids[position]))
        position += 1
    yield Stretch("read", stream.finish())


def _name(span: MediaSpan) -> str:
    tiles = "1 tile" if span.num_tiles == 1 else f"{span.num_tiles} tiles"
    return f"<img {tiles}>"


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text of about so many characters, the middle left out where it has more."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def printable(text: str) -> str:
    """Without escapes and other control characters, which are shown as Python writes them."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
