"""What the kernels for matrices in few bits take of a Hopper GPU, compiled without one.

Run by itself, since what is compiled here must not have been imported to be interpreted. Prints a
line of JSON for each: name, registers, bytes of stack (where registers are spilled) and of shared
memory, and how many loads of 16 bytes there are.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from internvl2.model.low_bit_plans import TILES, vectors
from internvl2.model.triton_kernels import eight_bit, four_bit, parts

TOOLS = Path(nvidia.__file__).parent / "bin"
HOPPER = GPUTarget("cuda", 90, 32)
INTEGERS = ("outputs", "inputs", "length", "share")
"""Multiples of 16 in all shapes of the family."""
WIDTHS = (896, 14336)
"""The fewest and the most inputs of matrices of 1B to 8B."""


def compiled(function, types: dict, constants: dict, warps: int, stages: int = 3):
    """Any of our kernels, its pointers and sizes as they come."""
    names = function.arg_names
    whole = [i for i, n in enumerate(names) if n not in constants and n != "rows"]
    signature = {
        n: "constexpr"
        if n in constants
        else types.get(n, "i32" if n in (*INTEGERS, "rows") else "*bf16")
        for n in names
    }
    source = ASTSource(
        function,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in whole},
    )
    return triton.compile(source, HOPPER, options={"num_warps": warps, "num_stages": stages})


def report(name: str, kernel) -> None:
    """Reads the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    wide = len(re.findall(r"LDG\.E[.\w]*\.128|LDGSTS\.E[.\w]*\.128", code))
    found = {"registers": registers, "stack": stack, "shared": kernel.metadata.shared, "wide": wide}
    print(json.dumps({"name": name, **found}), flush=True)


def one_row() -> None:
    kinds = {"*i8": (eight_bit, 16, {}), "*fp8e4nv": (eight_bit, 16, {})}
    kinds["*i32"] = (four_bit, 32, {"group": 64})
    for codes, (module, at_once, constants) in kinds.items():
        for inputs in WIDTHS:
            for plan in vectors(inputs, at_once):
                sizes = {"inputs": inputs, "height": plan.outputs, "has_bias": True}
                sizes["width"] = module.width(inputs, plan)
                types = {"codes": codes, "words": codes}
                kernel = compiled(module._vector, types, constants | sizes, plan.warps)
                report(f"one row, {codes}, {inputs} inputs, {plan.outputs} outputs", kernel)


def tiles() -> None:
    flags = {"has_bias": True, "is_part": False, "is_interpreted": False}
    for plan in [plan for plans in TILES.values() for plan in plans]:
        size = {"height": plan.rows, "width": plan.outputs}
        for codes in ("*i8", "*fp8e4nv"):
            constants = flags | size | {"depth": plan.inputs}
            kernel = compiled(eight_bit._tile, {"codes": codes}, constants, plan.warps, plan.stages)
            report(f"tiles, {codes}, {plan}", kernel)
        constants = flags | size | {"depth": plan.inputs // 8, "group": 64}
        kernel = compiled(four_bit._tile, {"words": "*i32"}, constants, plan.warps, plan.stages)
        report(f"tiles, int4, {plan}", kernel)


if __name__ == "__main__":
    one_row()
    tiles()
    flags = {"has_scales": True, "has_bias": True, "tile": parts.TILE, "shares": 5}
    report("parts", compiled(parts._add, {"parts": "*fp32"}, flags, warps=4))
