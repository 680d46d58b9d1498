"""Every kernel compiles for Hopper GPUs, into code that keeps its numbers in registers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.compiled]

SCRIPT = """
import itertools, json, os, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from internvl2.model.triton_kernels import (
    gate, packed_prefill, paged_decode, resample, row_product, row_walk, sum_norm, turn_and_store,
    vision,
)

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

def compiled(kernel, pointers, numbers, constants, most=128, **options):
    names = kernel.arg_names
    kinds = dict.fromkeys(names, "constexpr") | {n: "i32" for n in numbers} | pointers
    kinds |= {name: "fp32" for name in ("scale", "eps") if name in names}
    aligned = [n for n in names if kinds[n].startswith("*") or n.endswith("stride")]
    source = ASTSource(
        kernel,
        kinds,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True)
    used = f"MOST:{most} {usage.stdout}".replace(chr(10), " ")
    print(kernel.__name__, constants, built.metadata.shared, used)

for size, group in ((64, 7), (96, 1), (128, 8)):
    width = triton.next_power_of_2(size)
    for is_split in (True, False):
        found = "*fp32" if is_split else "*bf16"
        compiled(
            paged_decode._attend_split,
            {"q": "*bf16", "keys": "*bf16", "values": "*bf16", "tables": "*i64", "lengths": "*i64",
             "parts": found, "weights": found},
            ["q_stride", "table_stride"],
            {"group": group, "rows": 16, "size": size, "width": width, "block_size": 16,
             "tile": paged_decode.TILE, "is_split": is_split, "is_early": True,
             "is_interpreted": False},
            num_warps=4, num_stages=3, launch_pdl=True,
        )
    compiled(
        paged_decode._join_splits,
        {"parts": "*fp32", "weights": "*fp32", "lengths": "*i64", "out": "*bf16"},
        ["splits"],
        {"size": size, "width": width, "most": paged_decode.MOST_SPLITS,
         "tile": paged_decode.TILE, "is_early": True},
        num_warps=4, launch_pdl=True,
    )
    compiled(
        turn_and_store._turn,
        {"product": "*bf16", "cos": "*fp32", "sin": "*fp32", "q_weight": "*bf16",
         "k_weight": "*bf16", "slots": "*i64", "turned": "*bf16", "keys": "*bf16",
         "values": "*bf16"},
        [],
        {"turning": 2 * (group + 1), "kv_heads": 2, "half": size // 2, "width": width // 2,
         "tile": turn_and_store.HEADS, "is_normed": True, "is_early": True},
        num_warps=2, launch_pdl=True,
    )
for dim in (896, 4096, 8192):
    compiled(
        sum_norm._sum_norm,
        dict.fromkeys(["x", "added", "weight", "total", "normed"], "*bf16"),
        [],
        {"dim": dim, "width": triton.next_power_of_2(dim)},
        num_warps=sum_norm.warps_for(triton.next_power_of_2(dim)),
    )
for inputs, outputs, is_gated in ((896, 4864, True), (14336, 4096, False), (4096, 14336, True)):
    pointers = ["x", "added", "norm", "total", "weight", "scales", "bias", "out"]
    for numbers, shape in itertools.product(("*bf16", "*i8", "*fp8e4nv"), row_product.SHAPES):
        compiled(
            row_product._product,
            dict.fromkeys(pointers, "*bf16") | {"weight": numbers},
            [],
            {"inputs": inputs, "outputs": outputs,
             "rows": row_product.rows_for(outputs, is_gated, shape),
             "tile": min(shape.tile, triton.next_power_of_2(inputs)), "is_normed": is_gated,
             "is_gated": is_gated, "has_scales": numbers != "*bf16", "has_bias": True},
            # Other shapes than the usual one have all that leaves room for two programs.
            128 if shape.rows == row_product.SHAPES[0].rows and shape.tile <= 1024
            else 65536 // (2 * 32 * shape.warps),
            num_warps=shape.warps,
        )
    walks = [
        (numbers, codes, walk)
        for numbers, codes in (("*bf16", 1), ("*i8", 4), ("*fp8e4nv", 4))
        for walk in row_walk.walks_for(inputs, 2 if codes == 1 else 1, is_gated=is_gated)
    ]
    for numbers, codes, walk in walks:
        compiled(
            row_walk._walk,
            dict.fromkeys(pointers, "*bf16") | {"weight": numbers if codes == 1 else "*i32"},
            [],
            {"inputs": inputs, "outputs": outputs, "rows": walk.rows,
             "width": triton.next_power_of_2(inputs), "programs": 132 * walk.programs,
             "codes": codes, "is_int": numbers == "*i8", "is_normed": is_gated,
             "is_gated": is_gated, "has_scales": codes > 1, "has_bias": True, "is_early": True,
             "is_interpreted": False},
            # As many as the programs of a processor leave each other.
            65536 // (walk.programs * 32 * walk.warps),
            num_warps=walk.warps,
            launch_pdl=True,
        )
for size, group in ((64, 7), (96, 1), (128, 4)):
    width = triton.next_power_of_2(size)
    for tiling in packed_prefill.TILINGS:
        pointers = dict.fromkeys(["q", "k", "v", "out"], "*bf16")
        compiled(
            packed_prefill._attend_run,
            pointers | {"q_bounds": "*i32", "k_bounds": "*i32"},
            ["q_stride", "k_stride", "v_stride"],
            {"group": group, "size": size, "width": width, "rows": tiling.queries,
             "tile": tiling.keys(width), "is_interpreted": False},
            # Sums of 128 rows: eight warps of one program, or four of each of two, have all.
            256, num_warps=tiling.warps, num_stages=tiling.stages,
        )
compiled(
    resample._resample,
    {"pixels": "*u8", "starts": "*i32", "weights": "*i32", "out": "*u8"},
    ["values", "old", "new", "inner", "taps"],
    {"weight_bits": 22, "tile": resample.TILE},
    num_warps=4,
)
compiled(gate._gate, {"product": "*bf16", "out": "*bf16"}, [], {"inner": 4864, "tile": gate.TILE})
for dim, inner, is_centred in ((1024, 4096, True), (3200, 12800, False)):
    width = triton.next_power_of_2(dim)
    warps = vision._warps_for(width)
    pointers = ["x", "branch", "factors", "weight", "bias", "total", "normed"]
    compiled(
        vision._scaled_sum_norm, dict.fromkeys(pointers, "*bf16"), [],
        {"dim": dim, "width": width, "is_centred": is_centred}, num_warps=warps,
    )
    compiled(
        vision._norm_part, dict.fromkeys(["product", "q_weight", "k_weight"], "*bf16"), [],
        {"dim": dim, "width": width}, num_warps=warps,
    )
    compiled(
        vision._biased_gelu, dict.fromkeys(["product", "bias"], "*bf16"), [],
        {"inner": inner, "tile": vision.TILE}, num_warps=4,
    )
"""


def test_kernels_compile_for_hopper_and_spill_nothing(monkeypatch):
    triton = pytest.importorskip("triton")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (tools / "ptxas").exists():
        pytest.skip("this build of Triton has no ptxas")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 83
    for line in lines:
        usage = re.search(r"MOST:(\d+).*REG:(\d+) STACK:(\d+)", line)
        assert usage, line
        most, registers, stack = map(int, usage.groups())
        assert registers <= most, line
        assert stack <= 16, line
