"""Lists the operators that a release of torch_npu implements, read out of its wheel.

    pip download --no-deps --python-version 3.11 --only-binary :all: torch_npu==2.13.0
    python tests/ascend/read_operators.py torch_npu-2.13.0-*.whl

writes `operators-2.13.0.txt` beside this file. The wheel holds two tables from which torch_npu's
own build registers its kernels: its own operators are `custom` there, those of PyTorch `supported`,
`quant` or `autograd`. Each name must also be in the library that the wheel installs. Nothing is
imported from the wheel, so neither CANN nor an NPU is needed.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import yaml

TABLES = (
    "torch_npu/csrc/aten/npu_native_functions.yaml",
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml",
)
LIBRARY = "torch_npu/lib/libtorch_npu.so"
OF_TORCH = ("supported", "quant", "autograd")
"""Sections of a table; another one, `symint`, repeats names."""


@dataclass(frozen=True)
class OperatorList:
    """What one release implements."""

    version: str
    names: frozenset[str]
    """As in `aten::add.Tensor`: namespace, operator, overload."""

    @classmethod
    def read_wheel(cls, wheel: Path) -> "OperatorList":
        """The operators of a wheel's tables; each must occur in the wheel's library."""
        with ZipFile(wheel) as archive:
            tables = [yaml.safe_load(archive.read(name)) for name in TABLES]
            library = archive.read(LIBRARY)
        own = {name for table in tables for name in _names(table, "custom")}
        of_torch = {name for table in tables for key in OF_TORCH for name in _names(table, key)}
        # Two of its own are in both sections.
        names = {f"npu::{x}" for x in own} | {f"aten::{x}" for x in of_torch - own}
        unknown = [x for x in names if x.partition("::")[2].encode() + b"\0" not in library]
        if unknown:
            raise ValueError(f"{wheel.name} lists operators that {LIBRARY} lacks: {unknown}")
        return cls(wheel.name.split("-")[1], frozenset(names))

    @classmethod
    def read(cls, path: Path) -> "OperatorList":
        """The operators of a file that `write` has made."""
        lines = path.read_text().splitlines()
        names = frozenset(x for x in lines if not x.startswith("#"))
        return cls(path.stem.removeprefix("operators-"), names)

    def write(self, folder: Path) -> Path:
        """Keeps the list as a file named after its release, one operator a line."""
        of_torch = sum(name.startswith("aten::") for name in self.names)
        header = (
            f"# Operators of torch_npu {self.version}: {of_torch} of PyTorch's (aten) and "
            f"{len(self.names) - of_torch} of its own (npu).\n"
            "# Written by read_operators.py, which says how; not to be edited.\n"
        )
        path = folder / f"operators-{self.version}.txt"
        path.write_text(header + "".join(f"{name}\n" for name in sorted(self.names)))
        return path


def _names(table: dict[str, list[str | dict[str, str]] | None], section: str) -> list[str]:
    """An entry is a name, or a description whose `func` is a name or a signature."""
    entries = table.get(section) or []
    return [(x if isinstance(x, str) else x["func"]).partition("(")[0] for x in entries]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    operators = OperatorList.read_wheel(parser.parse_args().wheel)
    print(f"{operators.write(Path(__file__).parent)}: {len(operators.names)} operators")
