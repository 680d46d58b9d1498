"""The statements of a shell script, taken apart and never run: words, quotes, arrays, pipes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ENDS = "\n;&|()"
BLANK = " \t\r"
OPENING = ("if", "for", "while", "until", "case", "select", "{")
CLOSING = ("fi", "done", "esac", "}")
LEADING = ("then", "do", "else", "!", "time", "exec", "nohup")
"""Words before a command that change nothing about its flags."""

_ASSIGNED = re.compile(r"[A-Za-z_]\w*\+?=")
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a word: as it stands, or something like `${NAME}` to be replaced."""

    text: str
    quoted: bool = False
    expands: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or the array that `NAME=(...)` gives."""

    pieces: tuple[Piece, ...]
    items: "tuple[Word, ...] | None" = None

    @property
    def source(self) -> str:
        """The word as it stands in the script, without its quotes."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def is_assignment(self) -> bool:
        """Whether it begins with a name and an equals sign."""
        first = self.pieces[0] if self.pieces else Piece("", quoted=True)
        plain = not (first.quoted or first.expands)
        return plain and _ASSIGNED.match(first.text) is not None


@dataclass(frozen=True, slots=True)
class Statement:
    """A simple command with its assignments."""

    words: tuple[Word, ...]
    line: int
    certain: bool = True
    """False inside of `if`, loops and after `||`: nobody knows whether it is reached."""


def statements(text: str) -> Iterator[Statement]:
    """The simple commands of a script, in order; what holds them together is left out."""
    depth, tested = 0, False
    for words, line, before in _Reader(text).commands():
        while words and words[0].source in (*LEADING, *OPENING, *CLOSING):
            first = words[0].source
            depth += (first in OPENING) - (first in CLOSING)
            if first in ("for", "select"):
                break
            words = words[1:]
        is_test = bool(words) and words[0].source in ("[", "[[", "test")
        guarded = before == "||" or (before == "&&" and tested)
        tested = is_test or guarded
        if words and not is_test:
            yield Statement(tuple(words), line, depth == 0 and not guarded)


def pieces(text: str) -> tuple[Piece, ...]:
    """A text such as the default in `${NAME:-text}`, blanks and all."""
    return _Reader(text).rest()


@dataclass
class _Reader:
    """Goes through a script by characters."""

    text: str
    at: int = 0
    line: int = 1
    found: list[Piece] = field(default_factory=list)

    def commands(self) -> Iterator[tuple[list[Word], int, str]]:
        """Words of a command, its line, and the operator before it."""
        before = "\n"
        while self.at < len(self.text):
            line = self.line
            words = list(self._words())
            if words:
                yield words, line, before
            start = self.at
            while self._now and self._now in ENDS:
                self._take()
            before = self.text[start : self.at].strip(BLANK) or "\n"

    def rest(self) -> tuple[Piece, ...]:
        """Everything as one word."""
        while self.at < len(self.text):
            self._piece(stops="")
        return tuple(self.found)

    @property
    def _now(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, count: int = 1) -> str:
        taken = self.text[self.at : self.at + count]
        self.line += taken.count("\n")
        self.at += count
        return taken

    def _blanks(self) -> None:
        """On to the next word of the command: past blanks, comments and continued lines."""
        while self._now:
            if self._now in BLANK:
                self._take()
            elif self.text.startswith(("\\\n", "\\\r\n"), self.at):
                self._take(2 if self.text[self.at + 1] == "\n" else 3)
            elif self._now == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    def _words(self) -> Iterator[Word]:
        while True:
            self._blanks()
            if self._now in ("<", ">"):
                self._redirection()
            elif not self._now or self._now in ENDS:
                if self.text.startswith("&>", self.at):
                    self._take()
                    continue
                return
            else:
                word = self._word()
                is_stream = word.source.isdigit() and self.text.startswith(("<", ">"), self.at)
                if not is_stream:
                    yield word

    def _redirection(self) -> None:
        match = re.compile(r"[<>&|]+").match(self.text, self.at)
        operator = match[0] if match else self._now
        if operator.startswith("<<"):
            raise ValueError(f"line {self.line}: text after {operator} is not read; leave it out")
        self._take(len(operator))
        self._blanks()
        if self._now and self._now not in ENDS:
            self._word()

    def _word(self) -> Word:
        self.found = []
        while self._now and self._now not in ENDS + BLANK + "<>":
            self._piece(stops=ENDS + BLANK + "<>\\\"'$`")
        word = Word(tuple(self.found))
        if self._now == "(" and word.is_assignment and word.source.endswith("="):
            self._take()
            return Word(word.pieces, tuple(self._array()))
        return word

    def _array(self) -> Iterator[Word]:
        line = self.line
        while True:
            self._blanks()
            if not self._now or self._now in "<>":
                raise ValueError(f"line {line}: an array is not closed by )")
            if self._now == ")":
                self._take()
                return
            if self._now in ENDS:
                self._take()
            else:
                yield self._word()

    def _piece(self, stops: str) -> None:
        now = self._now
        if self.text.startswith(("\\\n", "\\\r\n"), self.at):
            self._take(2 if self.text[self.at + 1] == "\n" else 3)
        elif now == "\\":
            self.found.append(Piece(self._take(2)[1:], quoted=True))
        elif now == "'":
            self.found.append(Piece(self._until("'", "a quote"), quoted=True))
        elif now == '"':
            self._double()
        elif now in ("$", "`"):
            self.found.append(self._expansion(quoted=False))
        else:
            start = self.at
            self._take()
            while self._now and self._now not in (stops or "\\\"'$`"):
                self._take()
            self.found.append(Piece(self.text[start : self.at]))

    def _until(self, end: str, what: str) -> str:
        stop = self.text.find(end, self.at + 1)
        if stop < 0:
            raise ValueError(f"line {self.line}: {what} is not closed by {end}")
        return self._take(stop + 1 - self.at)[1:-1]

    def _double(self) -> None:
        line, before = self.line, len(self.found)
        self._take()
        while self._now != '"':
            if not self._now:
                raise ValueError(f'line {line}: a quote is not closed by "')
            if self._now == "\\":
                taken = self._take(2)
                kept = taken[1:] if taken[1:] in ('"', "\\", "$", "`") else taken
                self.found.append(Piece("" if taken[1:] == "\n" else kept, quoted=True))
            elif self._now in ("$", "`"):
                self.found.append(self._expansion(quoted=True))
            else:
                self.found.append(Piece(self._take(), quoted=True))
        self._take()
        if len(self.found) == before:
            self.found.append(Piece("", quoted=True))

    def _expansion(self, *, quoted: bool) -> Piece:
        start = self.at
        if self._now == "`":
            self._until("`", "a command")
            return Piece(self.text[start : self.at], quoted, expands=True)
        self._take()
        closing = {"(": ")", "{": "}"}.get(self._now)
        if closing is not None:
            self._balanced(self._now, closing)
        elif match := _NAME.match(self.text, self.at):
            self._take(len(match[0]))
        else:
            return Piece("$", quoted)
        return Piece(self.text[start : self.at], quoted, expands=True)

    def _balanced(self, opening: str, closing: str) -> None:
        line, depth = self.line, 0
        while self._now:
            taken = self._take()
            depth += (taken == opening) - (taken == closing)
            if not depth:
                return
        raise ValueError(f"line {line}: ${opening} is not closed by {closing}")
