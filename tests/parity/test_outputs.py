"""Vision features, hidden states and logits equal what the official code recorded, in fp32."""

import dataclasses
from functools import lru_cache

import pytest
import torch

from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions
from internvl2.model.vision import normalize

pytestmark = pytest.mark.parity

CASES = [
    "A_internlm2",
    "A_internlm2_ntk",
    "B_qwen2",
    "C_phi3",
    "D_llama3_vit6b",
    "D2_llama3_ntk",
    "E_qwen25_internvl2_5",
    "E2_internlm2_internvl2_5",
    "F_qwen3",
    "G_lora_internlm2",
]
TOLERANCE = 2e-4


@lru_cache
def loaded(path) -> InternVL:
    return load_model(path, dtype=torch.float32)


def with_config(model: InternVL, **changes) -> InternVL:
    """The same weights under a changed config."""
    changed = InternVL(dataclasses.replace(model.config, **changes))
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def assert_close(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def logits_of(model: InternVL, ids: list[int], tiles: torch.Tensor | None) -> torch.Tensor:
    attend, positions = PackedAttention.of([len(ids)]), Positions.packed([len(ids)])
    return model.logits(model(torch.tensor(ids), positions, tiles, attend))


@pytest.mark.parametrize("case", [c for c in CASES if c != "A_internlm2_ntk"])
@torch.no_grad()
def test_visual_tokens_equal_the_official_ones(recording, case):
    record = recording(case)
    model, arrays = loaded(record.checkpoint), record.arrays
    stored = [n for n in (1, 2, 5) if f"tiles_u8_{n}" in arrays and f"vit_embeds_{n}" in arrays]
    assert stored
    for n in stored:
        assert_close(model.encode_tiles(arrays[f"tiles_u8_{n}"]), arrays[f"vit_embeds_{n}"])


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in "ABCD"])
@torch.no_grad()
def test_every_hidden_state_of_the_vision_tower_is_equal(recording, case):
    record = recording(case)
    tower, arrays = loaded(record.checkpoint).vision, record.arrays
    pixels = normalize(arrays["tiles_u8_1"], torch.float32)
    for n, expected in enumerate(arrays["vit_hidden_states_1"]):
        assert_close(tower(pixels, n), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in "ABCD"])
@torch.no_grad()
def test_positions_are_interpolated_for_another_picture_size(recording, case):
    record = recording(case)
    tower, arrays = loaded(record.checkpoint).vision, record.arrays
    pixels = normalize(arrays["tiles_u8_alt"], torch.float32)
    assert_close(tower(pixels), arrays["vit_last_hidden_alt"])


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in "ABCDE"])
@pytest.mark.parametrize(
    ("change", "name"),
    [({"select_layer": -2}, "select_layer_-2"), ({"ps_version": "v1"}, "ps_v1")],
)
@torch.no_grad()
def test_variants_of_the_feature_extraction_are_equal(recording, case, change, name):
    record = recording(case)
    model, arrays = with_config(loaded(record.checkpoint), **change), record.arrays
    assert_close(model.encode_tiles(arrays["tiles_u8_1"]), arrays[f"vit_embeds_1_{name}"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_the_official_ones(recording, expand, case):
    record = recording(case)
    model, arrays = loaded(record.checkpoint), record.arrays
    runs = {run["name"]: run for run in record.expected["runs"]}
    names = [k.removeprefix("logits_") for k in arrays if k.startswith("logits_")]
    names = [n for n in names if n in runs]
    assert names
    for name in names:
        run = runs[name]
        count = run["num_tiles"]
        if count is not None and f"tiles_u8_{count}" not in arrays:
            continue
        tiles = None if count is None else arrays[f"tiles_u8_{count}"]
        logits = logits_of(model, expand(run["input_ids_rle"]), tiles)
        assert_close(logits[arrays[f"logits_pos_{name}"]], arrays[f"logits_{name}"])
        if f"argmax_{name}" in arrays:
            assert torch.equal(logits.argmax(-1).int(), arrays[f"argmax_{name}"])
            assert_close(logits.logsumexp(-1), arrays[f"logsumexp_{name}"])


@pytest.mark.parametrize("case", ["A_internlm2_ntk", "D2_llama3_ntk"])
def test_an_earlier_long_prompt_leaves_no_trace_in_a_short_one(recording, expand, case):
    record = recording(case)
    model = loaded(record.checkpoint)
    runs = {run["name"]: run for run in record.expected["runs"]}
    ids = expand(runs["text_only"]["input_ids_rle"])
    alone = logits_of(model, ids, None)
    long_run = runs["tiles5_two_images"]
    logits_of(model, expand(long_run["input_ids_rle"]), record.arrays["tiles_u8_5"])
    assert torch.equal(logits_of(model, ids, None), alone)
    stateful = record.arrays["logits_stateful_text_only_after_tiles5"]
    assert not torch.allclose(alone, stateful, atol=0.1)
