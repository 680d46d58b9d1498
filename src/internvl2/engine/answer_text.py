"""The text of one answer as its tokens arrive, without the stop text that ends it."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class TextStream(Protocol):
    """A tokenizer's streaming decoder; it never splits a character."""

    def add(self, token_id: int) -> str:
        """The text that is certain once this token is known."""
        ...

    def finish(self) -> str:
        """What was still kept back."""
        ...


class AnswerText:
    """Finds stop texts, also across tokens; what could become one is kept back until it cannot."""

    def __init__(self, stream: TextStream, stops: tuple[str, ...], include_stop: bool) -> None:
        self._stream = stream
        self._stops = stops
        self._include_stop = include_stop
        self._held = ""
        self.is_stopped = False
        """Whether a stop text was found; nothing more is released then."""

    def add(self, token_id: int, may_stop: bool) -> str:
        """The text that is certain once this token is known."""
        if not self._stops:
            return self._stream.add(token_id)
        self._held += self._stream.add(token_id)
        if may_stop and self._cut_at_stop():
            return self._release(len(self._held))
        return self._release(len(self._held) - (self._num_open() if may_stop else 0))

    def finish(self, may_stop: bool) -> str:
        """What was kept back, when the answer has ended."""
        if self.is_stopped:
            return ""
        self._held += self._stream.finish()
        if may_stop:
            self._cut_at_stop()
        return self._release(len(self._held))

    def _cut_at_stop(self) -> bool:
        """Ends the held text at the stop text that is complete first, of equal ends the longest.

        By its end, so that it does not matter how many characters a token brings.
        """
        starts = [(self._held.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if not found:
            return False
        end, start = min(found)
        self._held = self._held[: end if self._include_stop else start]
        self.is_stopped = True
        return True

    def _num_open(self) -> int:
        """Length of the longest end of the held text with which a stop text begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
