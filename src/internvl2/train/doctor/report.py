"""What a check found, as plain numbers and texts, and as lines for people."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from internvl2.train.doctor.findings import FAULTS, WARNINGS, Kind
from internvl2.train.doctor.sets import Use
from internvl2.train.doctor.view import Stretch, lines_of, printable

FIRST = 10
"""So many places of each kind of finding are told; the others are counted."""
FEW = 10
"""Runs of fewer steps are seldom meant: recipes' values are for thousands of samples."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number varies over samples."""

    mean: float
    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class Place:
    """A sample with a finding."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """All findings of a kind in a set."""

    kind: Kind
    count: int
    """Samples."""
    first: tuple[Place, ...]

    @property
    def is_fault(self) -> bool:
        """Whether a run must not start with it."""
        return self.kind in FAULTS

    @property
    def title(self) -> str:
        """The kind in words."""
        return FAULTS.get(self.kind) or WARNINGS[self.kind]


@dataclass(frozen=True, slots=True)
class Totals:
    """What the usable samples of a set take."""

    tokens: Spread
    tiles: Spread
    visual_share: float
    """Visual tokens, of all tokens."""
    label_share: float
    """Learned tokens, of all tokens."""


@dataclass(frozen=True, slots=True)
class Packed:
    """How samples fill packs."""

    samples: int
    """Those that can be used."""
    tokens: int
    packs: int
    filled: float
    """Share of the packs' tokens that are samples'."""
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample as the model reads it."""

    where: str
    tokens: int
    tiles: int
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class SetReport:
    """What was found in a set."""

    name: str
    use: Use
    stored: int
    """Records, each counted once."""
    inspected: int
    usable: int
    found: tuple[Found, ...]
    totals: Totals | None
    """None where no sample can be used."""
    epoch: Packed | None
    """An epoch of this set alone; its samples are repeated as the recipe says."""
    shown: tuple[Shown, ...]
    closed: str | None = None
    """Why the set cannot be opened."""

    @property
    def has_faults(self) -> bool:
        """Whether a run must not start with it."""
        return self.closed is not None or any(found.is_fault for found in self.found)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in the data of a recipe."""

    recipe: str
    model: str
    pack_tokens: int
    pack_tiles: int
    sets: tuple[SetReport, ...]
    epoch: Packed | None
    """An epoch of all training sets together."""
    packs_per_step: int
    steps: int | None
    """Of the whole run."""
    is_partial: bool
    """Whether it was interrupted."""

    @property
    def faulty_samples(self) -> int:
        """Samples that a run must not see."""
        return sum(each.inspected - each.usable for each in self.sets)

    @property
    def has_faults(self) -> bool:
        """Whether a run must not start."""
        return any(each.has_faults for each in self.sets)


def plain(report: Report) -> dict[str, Any]:
    """The report as plain values, for JSON."""
    sets = [
        asdict(one)
        | {"found": [asdict(found) | {"is_fault": found.is_fault} for found in one.found]}
        for one in report.sets
    ]
    return asdict(report) | {"sets": sets, "has_faults": report.has_faults}


def lines(report: Report, colour: bool) -> Iterator[str]:
    """The report for people."""
    for each in report.sets:
        yield from _set_lines(each, report, colour)
        yield ""
    yield from _run_lines(report)
    yield verdict(report)


def _set_lines(one: SetReport, report: Report, colour: bool) -> Iterator[str]:
    use = "" if one.use == "training" else f" ({one.use})"
    yield f"{_in_line(one.name)}{use}"
    if one.closed is not None:
        yield f"  fault    cannot be opened: {_in_line(one.closed)}"
        return
    partly = "" if one.inspected == one.stored else f", {one.inspected:,} looked at"
    yield f"  samples  {one.stored:,}{partly}, {one.usable:,} usable"
    if one.totals is not None:
        yield from _total_lines(one)
    if one.epoch is not None:
        yield f"  epoch    {_packed(one.epoch, report.pack_tokens)}"
    for found in one.found:
        yield from _found_lines(found)
    for shown in one.shown:
        yield f"  {_READ_AS[one.use]} {_in_line(shown.where)}: {_taken(shown)}"
        yield from (f"    {line}" for line in lines_of(shown.stretches, colour))


_TARGETS: dict[Use, str] = {
    "training": "learned",
    "validation": "measured",
    "guard": "compared",
    "questions": "right answers",
}
_READ_AS: dict[Use, str] = {
    "training": "learned from",
    "validation": "measured on",
    "guard": "compared on",
    "questions": "asked by",
}


def _total_lines(one: SetReport) -> Iterator[str]:
    assert one.totals is not None
    totals = one.totals
    yield f"  tokens   {_spread(totals.tokens)}"
    yield f"  tiles    {_spread(totals.tiles)}"
    yield f"  visual   {totals.visual_share:.1%} of the tokens"
    yield f"  labels   {totals.label_share:.1%} of the tokens are {_TARGETS[one.use]}"


def _taken(shown: Shown) -> str:
    return f"{counted(shown.tokens, 'token')}, {counted(shown.tiles, 'tile')}"


def _found_lines(found: Found) -> Iterator[str]:
    label = "fault  " if found.is_fault else "warning"
    yield f"  {label}  {counted(found.count, 'sample')}: {found.title}"
    for place in found.first:
        yield f"    {_in_line(place.where)}: {_in_line(place.reason)}"
    if left := found.count - len(found.first):
        yield f"    and {left:,} more"


def _in_line(text: str) -> str:
    """Words of the data, with nothing in them that would steer a terminal or end the line."""
    return printable(text).replace("\n", "\\n")


def _run_lines(report: Report) -> Iterator[str]:
    if report.epoch is None:
        return
    yield f"an epoch of all training sets: {_packed(report.epoch, report.pack_tokens)}"
    if report.steps is not None:
        packs = counted(report.packs_per_step, "pack")
        shorter = "lower --packs-per-step, or " if report.packs_per_step > 1 else ""
        few = f"; so few change little: {shorter}lengthen the schedule"
        yield f"the run: {counted(report.steps, 'step')} of {packs}{few * (report.steps < FEW)}"


def _packed(packed: Packed, pack_tokens: int) -> str:
    about = "about " if packed.is_estimate else ""
    return (
        f"{counted(packed.samples, 'sample')}, {about}{counted(packed.tokens, 'token')}, {about}"
        f"{counted(packed.packs, 'pack')} of {pack_tokens:,} tokens, {packed.filled:.0%} full"
    )


def _spread(spread: Spread) -> str:
    return (
        f"mean {spread.mean:,.1f}, half of them up to {spread.p50:,}, 95 % up to {spread.p95:,}, "
        f"max {spread.max:,}"
    )


def verdict(report: Report) -> str:
    """All that was found in one line."""
    partial = "interrupted: what was looked at until then: " if report.is_partial else ""
    closed = sum(each.closed is not None for each in report.sets)
    faulty = report.faulty_samples
    faults = [counted(faulty, "faulty sample")] if faulty else []
    faults += [f"{counted(closed, 'set')} that cannot be opened"] if closed else []
    warned = sum(f.count for each in report.sets for f in each.found if not f.is_fault)
    return f"{partial}{' and '.join(faults) or 'no faults'}, {counted(warned, 'warning')}"


def counted(count: int, thing: str) -> str:
    """So many of a thing, in words."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
