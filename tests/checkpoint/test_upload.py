"""Weights arrive whole and in order, however they are taken apart on the way."""

import pytest
import torch

from internvl2.checkpoint import store
from internvl2.checkpoint.store import load_model
from internvl2.checkpoint.upload import Upload, uploaded


def weights():
    """Of several types and sizes, among them a number, nothing, and rows that are not in a row."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(33, 70, generator=generator)
    return [
        ("wide", wide),
        ("half", wide.bfloat16()[:7]),
        ("turned", wide.T),
        ("column", wide[:, 3:5]),
        ("number", torch.tensor(3.5)),
        ("nothing", torch.zeros(0, 4)),
        ("codes", torch.arange(1000, dtype=torch.int32)),
        *((f"small {n}", torch.full((n,), float(n))) for n in range(20)),
    ]


def assert_equal(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, one), (_, other) in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        assert torch.equal(one.cpu(), other), name


@pytest.mark.parametrize(("piece", "ahead"), [(16, 0), (100, 3000), (2**20, 2**20)])
@pytest.mark.parametrize("readers", [1, 3])
def test_every_tensor_arrives_as_it_was_and_in_order(piece, ahead, readers):
    upload = Upload(torch.device("cpu"), piece, readers, ahead)
    assert_equal(list(upload.tensors(weights())), weights())


def test_no_more_is_read_ahead_than_is_wanted():
    read = []

    def each():
        for name, tensor in weights():
            read.append(name)
            yield name, tensor

    arriving = Upload(torch.device("cpu"), bytes_ahead=10_000).tensors(each())
    assert next(arriving)[0] == "wide"
    assert read == ["wide", "half"]


def test_an_error_while_reading_is_raised():
    def broken():
        yield from weights()[:3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(Upload(torch.device("cpu"), piece_bytes=64).tensors(broken()))


def test_weights_for_a_cpu_stay_views_of_their_file():
    named = weights()
    assert uploaded(named, torch.device("cpu")) is named


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_loaded_model_has_the_same_numbers(recording, monkeypatch, quantize):
    directory = recording("A_internlm2").checkpoint
    expected = load_model(directory, quantize=quantize).state_dict()
    pieces = Upload(torch.device("cpu"), piece_bytes=1000, bytes_ahead=10_000)
    monkeypatch.setattr(store, "uploaded", lambda weights, device: pieces.tensors(weights))
    found = load_model(directory, quantize=quantize).state_dict()
    assert_equal(list(found.items()), list(expected.items()))


@pytest.mark.gpu
def test_a_model_loaded_on_a_gpu_has_the_numbers_of_one_on_a_cpu(recording):
    directory = recording("A_internlm2").checkpoint
    expected = load_model(directory).state_dict()
    assert_equal(
        list(load_model(directory, device="cuda").state_dict().items()), [*expected.items()]
    )


@pytest.mark.gpu
def test_tensors_arrive_on_a_gpu_while_the_ones_before_are_used():
    device = torch.device("cuda")
    big = [(str(n), torch.randn(1000, 3000 + n)) for n in range(12)]
    sums = []
    found = []
    for name, tensor in Upload(device, 2**20, 4, 2**24).tensors([*weights(), *big]):
        found.append((name, tensor.clone()))
        sums.append(tensor.float().sum())
        del tensor
    torch.cuda.synchronize()
    assert_equal(found, [*weights(), *big])
