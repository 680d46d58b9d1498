"""Words of a script with their variables and sums replaced; what only a shell knows stays unknown.

Nothing is executed: no command, no file, no environment. A value that would need them is an
`Unknown` with the reason, which is told if somebody asks for it.
"""

import ast
import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from internvl2.train.migrate.shell import Piece, Statement, Word, pieces

LONGEST = 100_000
"""Characters of a value; a longer one comes from a script that doubles it on purpose."""
LONGEST_SUM = 500

_PARAMETER = re.compile(
    r"\$\{(?P<count>#?)(?P<name>[A-Za-z_]\w*|[0-9@*])(\[(?P<index>[^\]]*)\])?"
    r"((?P<operator>:?[-=+?])(?P<other>.*))?\}",
    re.DOTALL,
)
_EXPR = re.compile(r"(?:\$\(|`)\s*expr\s(?P<sum>.*)[)`]", re.DOTALL)
"""The one command that is read: what scripts made sums with before shells had them."""


class Unexpandable(ValueError):
    """A word whose value only a running shell knows; says why."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The value of a variable that could not be found out."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expanded:
    """A word of a command as the program would get it."""

    text: str
    fault: str | None = None
    """Why `text` is only what the script says."""


@dataclass
class Variables:
    """What names stand for, as a script goes on; the words of an array, or one text."""

    values: dict[str, tuple[str, ...] | Unknown] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Variables":
        """Those that a script is started with."""
        return cls({name: (value,) for name, value in given.items()})

    def assign(self, word: Word, statement: Statement) -> str:
        """Takes in `NAME=value`; gives the name."""
        head = word.pieces[0]
        name, _, rest = head.text.partition("=")
        plain = name.removesuffix("+")
        value: tuple[str, ...] | Unknown
        try:
            if not statement.certain:
                raise Unexpandable("it is set inside of an `if`, a loop or after `||`")
            value = self._assigned(Piece(rest), word)
            before = self.values.get(plain, ())
            if name != plain and isinstance(before, Unknown):
                value = before
            elif name != plain and isinstance(value, tuple) and not isinstance(before, Unknown):
                joined = ("".join((*before, *value)),)
                value = joined if word.items is None else (*before, *value)
        except Unexpandable as fault:
            value = Unknown(f"${plain} of line {statement.line}: {fault}")
        except RecursionError:
            value = Unknown(f"${plain} of line {statement.line}: it is nested too deeply")
        self.values[plain] = value
        return plain

    def forget(self, name: str, line: int) -> None:
        """A variable of a loop."""
        self.values[name] = Unknown(f"${name} of line {line}: it changes in a loop")

    def words(self, word: Word) -> list[Expanded]:
        """The words that a word becomes: none for an empty `$NAME`, several for one with blanks."""
        try:
            return [Expanded(text) for text in self._fields(word.pieces)]
        except Unexpandable as fault:
            return [Expanded(word.source, str(fault))]
        except RecursionError:
            return [Expanded(word.source, "it is nested too deeply")]

    def _assigned(self, first: Piece, word: Word) -> tuple[str, ...]:
        if word.items is not None:
            return tuple(text for item in word.items for text in self._fields(item.pieces))
        return (self.joined((first, *word.pieces[1:])),)

    def joined(self, parts: Sequence[Piece]) -> str:
        """The pieces as one text, blanks and all."""
        texts = [" ".join(self._values(p)) if p.expands else p.text for p in parts]
        return _bounded("".join(texts))

    def _fields(self, parts: Sequence[Piece]) -> list[str]:
        done: list[str] = []
        current: str | None = None
        for piece in parts:
            if not piece.expands:
                has_content = piece.quoted or piece.text
                current = (current or "") + piece.text if has_content else current
                continue
            values = self._values(piece)
            if piece.quoted:
                found = list(values) if _is_list(piece.text) else [" ".join(values)]
            else:
                found = " ".join(values).split()
            for number, text in enumerate(found):
                if number and current is not None:
                    done.append(current)
                    current = None
                current = (current or "") + text
        if current is not None:
            done.append(current)
        _bounded("".join(done))
        return done

    def _values(self, piece: Piece) -> tuple[str, ...]:
        text = piece.text
        if text.startswith("$(("):
            return (str(self._sum(text[3:-2])),)
        if expr := _EXPR.fullmatch(text):
            return (str(self._sum(expr["sum"])),)
        if text.startswith(("$(", "`")):
            raise Unexpandable(f"{text} is a command, and none is run")
        if not text.startswith("${"):
            text = "${" + text[1:] + "}"
        match = _PARAMETER.fullmatch(text)
        if match is None:
            raise Unexpandable(f"{piece.text} is a form of expansion that is not read")
        return self._parameter(match, piece.text)

    def _parameter(self, match: re.Match[str], source: str) -> tuple[str, ...]:
        found = self.values.get(match["name"])
        if match["name"] in ("@", "*"):
            found = found or ()
        needs_content = (match["operator"] or "").startswith(":")
        is_empty = found is None or (needs_content and found in ((), ("",)))
        kind = (match["operator"] or "")[-1:]
        if kind == "+":
            return () if is_empty else (self.joined(pieces(match["other"])),)
        if is_empty and kind in ("-", "="):
            value = self.joined(pieces(match["other"]))
            if kind == "=":
                self.values[match["name"]] = (value,)
            return (value,)
        if isinstance(found, Unknown):
            raise Unexpandable(found.reason)
        if found is None:
            name = match["name"]
            raise Unexpandable(f"{source} is set nowhere; give it with --set {name}=VALUE")
        return _of_array(found, match, source)

    def _sum(self, text: str) -> int:
        plain = self.joined(_without_quotes(text))
        if len(plain) > LONGEST_SUM:
            raise Unexpandable(f"a sum of {len(plain)} characters is not read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SyntaxWarning)  # which then is a SyntaxError
                tree = ast.parse(plain.strip().replace("/", " / "), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise Unexpandable(f"the sum $(({text})) is not read") from None
        return self._calculated(tree.body, text)

    def _calculated(self, node: ast.expr, text: str) -> int:
        match node:
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                return value
            case ast.Name(id=name):
                (value,) = self._values(Piece(f"${name}", expands=True)) or ("0",)
                if not re.fullmatch(r"\s*[+-]?\d+\s*", value):
                    raise Unexpandable(f"${name} is {value!r}, not a whole number, in $(({text}))")
                return int(value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._calculated(operand, text)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                first, second = self._calculated(left, text), self._calculated(right, text)
                if isinstance(op, ast.Div | ast.Mod) and not second:
                    raise Unexpandable(f"$(({text})) divides by 0")
                return _OPERATORS[type(op)](first, second)
        raise Unexpandable(f"the sum $(({text})) has more than + - * / % and brackets")


def _of_array(found: tuple[str, ...], match: re.Match[str], source: str) -> tuple[str, ...]:
    index = match["index"]
    if match["count"]:
        return (str(len(found) if index in ("@", "*") else len(found[0] if found else "")),)
    if match["name"] in ("@", "*") or index in ("@", "*"):
        return found
    place = index or "0"
    if not place.isdigit():
        raise Unexpandable(f"{source} is a form of expansion that is not read")
    return found[int(place) : int(place) + 1] or ("",)


def _quotient(a: int, b: int) -> int:
    """Cut towards 0, as shells do."""
    cut = abs(a) // abs(b)
    return cut if (a < 0) == (b < 0) else -cut


def _is_list(source: str) -> bool:
    return source == "$@" or "[@]" in source or source.startswith("${@")


def _without_quotes(text: str) -> tuple[Piece, ...]:
    return pieces(text.replace('"', ""))


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _quotient,
    ast.Mod: lambda a, b: a - b * _quotient(a, b),
}


def _bounded(text: str) -> str:
    if len(text) > LONGEST:
        raise Unexpandable(f"a value of more than {LONGEST} characters is not read")
    return text
