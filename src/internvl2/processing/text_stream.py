"""Token ids to text as they arrive: whole characters only, in sum the same as decoding at once."""

import re
from collections.abc import Callable, Collection

SPACE_BEFORE = re.compile(r" ([.?!,])")
CONTRACTIONS = (" n't", " 'm", " 's", " 've", " 're")
INSIDE_A_PATTERN = frozenset(" n'vr")
"""No pattern of `clean_up` goes on after a character outside of these."""


class Utf8:
    """Bytes to text, an unfinished character kept back until its rest arrives."""

    def __init__(self, mark_every_byte: bool) -> None:
        self._mark_every_byte = mark_every_byte
        """SentencePiece writes one U+FFFD per broken byte, Python one per broken sequence."""
        self._pending = b""

    def add(self, data: bytes) -> str:
        """The characters that these bytes complete."""
        if data.isascii() and not self._pending:
            return data.decode()
        return self._decode(data, final=False)

    def finish(self) -> str:
        """What was kept back, as U+FFFD."""
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, final: bool) -> str:
        rest, text = self._pending + data, []
        self._pending = b""
        while rest:
            try:
                text.append(rest.decode())
                break
            except UnicodeDecodeError as fault:
                text.append(rest[: fault.start].decode())
                if fault.reason == "unexpected end of data" and not final:
                    self._pending = rest[fault.start :]
                    break
                text.append("\ufffd")
                end = fault.start + 1 if self._mark_every_byte else fault.end
                rest = rest[end:]
        return "".join(text)


class TextStream:
    """The streaming decoder of one answer."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        skipped: Collection[int],
        whole: Collection[int],
        utf8: Utf8,
        drop_first_space: bool,
        clean_up_spaces: bool,
    ) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._whole = whole
        """Added tokens: a character never continues across them."""
        self._utf8 = utf8
        self._drop_space = drop_first_space
        self._cleaned = clean_up_spaces
        self._held = ""

    def add(self, token_id: int) -> str:
        """The text that is certain once this token is known; often one word, sometimes nothing."""
        if token_id in self._skipped:
            return ""
        data = self._token_bytes(token_id)
        if self._drop_space:
            data = data.removeprefix(b" ") if token_id not in self._whole else data
            self._drop_space = False
        if token_id in self._whole:
            return self._release(self._utf8.finish() + data.decode())
        return self._release(self._utf8.add(data))

    def finish(self) -> str:
        """What was still kept back when the answer ended."""
        text = self._held + self._utf8.finish()
        self._held = ""
        return clean_up(text) if self._cleaned else text

    def _release(self, text: str) -> str:
        if not self._cleaned:
            return text
        text = self._held + text
        end = len(text)
        while end and text[end - 1] in INSIDE_A_PATTERN:
            end -= 1
        self._held = text[end:]
        return clean_up(text[:end])


def clean_up(text: str) -> str:
    """Without the space before punctuation and contractions, as older transformers decoded."""
    text = SPACE_BEFORE.sub(r"\1", text).replace(" ' ", "'")
    for contraction in CONTRACTIONS:
        text = text.replace(contraction, contraction[1:])
    return text
