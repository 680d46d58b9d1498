"""The fake device: memory, copies, streams, random numbers, and operators that ran."""

import io
import multiprocessing

import pytest
import torch
import torch_npu


def test_the_device_is_the_accelerator_that_torch_finds() -> None:
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    assert torch.npu is torch_npu.npu
    assert torch.npu.is_available()
    assert torch.npu.device_count() == torch.accelerator.device_count() == 1
    assert torch.zeros(2, device="npu").device == torch.device("npu:0")


def test_memory_is_counted_while_tensors_live_and_reserved_until_the_cache_is_empty() -> None:
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()
    tensor = torch.empty(1000, device="npu")
    assert torch.npu.memory_allocated() == before + 4096
    del tensor
    assert torch.npu.memory_allocated() == before
    assert torch.npu.memory_reserved() == torch.npu.max_memory_reserved() == before + 4096
    assert torch.npu.max_memory_allocated() == before + 4096
    free, total = torch.npu.mem_get_info()
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info() == (free + 4096, total)
    assert torch.accelerator.get_memory_info() == (free + 4096, total)


def test_an_allocation_above_the_limit_is_out_of_memory_and_leaves_the_rest_usable() -> None:
    with torch_npu.testing.memory_of(torch.npu.memory_allocated() + 16384):
        kept = torch.ones(1024, device="npu")
        with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
            torch.empty(10_000, device="npu")
        assert (kept + kept).sum().item() == 2048


def test_copies_that_the_host_waits_for_are_counted_and_others_are_not() -> None:
    ours, there = torch.ones(3).pin_memory(), torch.ones(3, device="npu")
    torch_npu.testing.forget_synchronizations()
    assert ours.is_pinned()
    assert ours.to("npu", non_blocking=True).device.type == "npu"
    assert there.to("cpu", non_blocking=True).is_pinned()
    there.add_(ours.to("npu", non_blocking=True)).mul_(2.0)
    assert torch_npu.testing.synchronizations() == 0
    there.cpu(), ours.to("npu"), there.sum().item(), there[there > 1], torch.npu.synchronize()
    kinds = ("device_to_host", "host_to_device", "item", "operator", "wait")
    assert torch_npu.testing.synchronizations_by_kind() == dict.fromkeys(kinds, 1)


def test_what_is_copied_without_waiting_is_there_after_waiting_and_not_before() -> None:
    there = torch.arange(1, 4, device="npu")
    ours = there.to("cpu", non_blocking=True)
    event = torch.npu.Event()
    event.record()
    there.zero_()
    assert ours.tolist() == [-1, -1, -1]
    event.synchronize()
    assert ours.tolist() == [1, 2, 3]


def test_operators_are_recorded_by_name() -> None:
    torch_npu.testing.forget_operators()
    x = torch.ones(2, 2, device="npu")
    (x @ x).relu()
    torch_npu.npu_swiglu(x)
    names = torch_npu.testing.recorded_operators()
    assert {"aten::fill_.Scalar", "aten::mm.out", "npu::npu_swiglu"} <= names
    assert "aten::cumsum" not in names


def test_results_may_grow_and_written_arguments_are_the_device_s_own() -> None:
    x, out = torch.arange(4.0, device="npu"), torch.empty(0, device="npu")
    assert torch.add(x, x, out=out) is out
    assert out.cpu().tolist() == [0, 2, 4, 6]
    view = x.view(2, 2)[1]
    view += 1
    assert x.cpu().tolist() == [0, 1, 3, 4]
    x.index_copy_(0, torch.tensor([0], device="npu"), torch.tensor([9.0], device="npu"))
    assert x.cpu().tolist() == [9, 1, 3, 4]
    x.untyped_storage().resize_(0)
    x.untyped_storage().resize_(16)
    assert x.fill_(1.0).sum().item() == 4


def test_streams_and_events_are_torch_s_and_always_done() -> None:
    stream = torch.npu.Stream()
    first, second = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    first.record()
    with torch.npu.stream(stream):
        assert torch.npu.current_stream() == stream
        second.record()
    assert torch.npu.current_stream() == torch.npu.default_stream()
    stream.wait_event(first)
    torch.npu.current_stream().wait_stream(stream)
    assert second.query()
    assert first.elapsed_time(second) >= 0


def test_random_numbers_repeat_with_their_seed_and_with_their_state() -> None:
    torch.manual_seed(3)
    first = torch.rand(4, device="npu").cpu()
    torch.npu.manual_seed(3)
    assert torch.equal(torch.rand(4, device="npu").cpu(), first)
    state = torch.npu.get_rng_state()
    second = torch.rand(4, device="npu").cpu()
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="npu").cpu(), second)
    own = torch.Generator("npu").manual_seed(3)
    assert torch.equal(torch.rand(4, device="npu", generator=own).cpu(), first)


def test_drawing_on_the_device_leaves_the_cpu_s_numbers_alone() -> None:
    torch.manual_seed(3)
    torch.rand(4, device="npu")
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), after)


def test_tensors_are_saved_and_loaded() -> None:
    file = io.BytesIO()
    torch.save(torch.arange(3, device="npu"), file)
    file.seek(0)
    assert torch.load(file, map_location="cpu").tolist() == [0, 1, 2]
    file.seek(0)
    assert torch.load(file).device.type == "npu"


def _allocate(queue: multiprocessing.Queue) -> None:
    try:
        torch.zeros(1, device="npu")
    except RuntimeError as error:
        queue.put(str(error))


def test_a_forked_process_has_no_device() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_allocate, args=(queue,))
    child.start()
    assert "forked subprocess" in queue.get(timeout=30)
    child.join()
