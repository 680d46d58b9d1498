"""How many threads of the CPU are ours: cores, what the process may run on, the group's quota.

PyTorch counts the cores of the machine. In a container that may use fewer, its threads then wait
for one another while the system holds some of them back.
"""

import os
from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Cores:
    """What a process may compute on."""

    logical: int
    """Processors that it may run on, as the system counts them."""
    physical: int
    """Cores that these are threads of."""
    quota: float | None = None
    """Cores' worth of time that the control group gives it; None is no limit."""

    @property
    def threads(self) -> int:
        """One for each core, and none that the quota would stop.

        Two threads of one core share the units that multiply.
        """
        cores = max(1, min(self.logical, self.physical))
        return cores if self.quota is None else max(1, min(cores, int(self.quota)))

    @property
    def reason(self) -> str:
        """Where the number of threads comes from."""
        if self.quota is not None and self.threads < min(self.logical, self.physical):
            return f"the control group gives time for {self.quota:g} of {self.physical} cores"
        if self.physical < self.logical:
            return f"one for each physical core, which have {self.logical} threads together"
        return "one for each core that this process may run on"


def read_cores() -> Cores:
    """The cores of this process."""
    allowed = _allowed_processors()
    siblings = {_siblings(CPUS, processor) for processor in allowed}
    return Cores(len(allowed), len(siblings), read_quota(GROUPS, OWN_GROUP))


def read_quota(groups: Path, own: Path) -> float | None:
    """The least quota of a control group (version 1 or 2) and of those around it."""
    found = [quota for group in _groups(groups, own) if (quota := _quota_of(group)) is not None]
    return min(found, default=None)


def _allowed_processors() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _siblings(cpus: Path, processor: int) -> str:
    """The processors that share a core with this one; itself alone where the system is silent."""
    listed = cpus / f"cpu{processor}" / "topology" / "thread_siblings_list"
    return listed.read_text().strip() if listed.exists() else str(processor)


def _groups(groups: Path, own: Path) -> list[Path]:
    """Directories that may hold the process's quota; in a container the first is its own."""
    roots = [groups, groups / "cpu", groups / "cpu,cpuacct"]
    lines = own.read_text().splitlines() if own.exists() else []
    inside: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            root = groups / controllers if controllers else groups
            parts = Path(path.lstrip("/"))
            inside += [root / part for part in (parts, *parts.parents)]
    return [*roots, *inside]


def _quota_of(group: Path) -> float | None:
    if (group / "cpu.max").exists():
        limit, period = (group / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    limit, period = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
    if not (limit.exists() and period.exists()):
        return None
    microseconds = int(limit.read_text())
    return None if microseconds < 0 else microseconds / int(period.read_text())
