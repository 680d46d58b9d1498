"""What one of several processes reads of a checkpoint is its part of every tensor, and no more."""

from pathlib import Path

import pytest
import torch

from internvl2.checkpoint.store import load_model, load_share
from internvl2.model.low_bit import Int8Linear, stored_bytes
from internvl2.model.tensor_parallel import Share

CASES = ("A_internlm2", "B_qwen2", "C_phi3", "D2_llama3_ntk", "F_qwen3", "G_lora_internlm2")


def read(directory: Path, rank: int, size: int = 2, quantize: str | None = None):
    share = Share(rank, size)
    return load_share(directory, share, device="cpu", dtype=torch.float32, quantize=quantize)


@pytest.mark.parametrize("case", CASES)
def test_every_layout_of_weights_is_read_in_parts(recording, case):
    directory = recording(case).checkpoint
    whole = load_model(directory, dtype=torch.float32)
    for rank in (0, 1):
        own = read(directory, rank)
        parts = dict(own.share.parts(whole.named_parameters(), whole.config.decoder))
        assert sorted(parts) == sorted(name for name, _ in own.named_parameters())
        for name, parameter in own.named_parameters():
            assert torch.equal(parameter, parts[name]), name
    assert stored_bytes(own.decoder.layers) < 0.52 * stored_bytes(whole.decoder.layers)


def test_a_share_is_quantised_by_itself(recording):
    directory = recording("B_qwen2").checkpoint
    own = read(directory, 1, quantize="int8").decoder.layers[0]
    plain = read(directory, 1).decoder.layers[0]
    for few, exact in ((own.attention.q, plain.attention.q), (own.mlp.down, plain.mlp.down)):
        assert isinstance(few, Int8Linear)
        assert few.weight.shape == exact.weight.shape
        widest = exact.weight.abs().max().item() / 127  # of a step between two codes
        torch.testing.assert_close(few.weight, exact.weight, rtol=0, atol=widest * 0.51)
