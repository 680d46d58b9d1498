import torch

from internvl2.device import _room_in_group, threads


def test_threads_are_as_many_as_before_when_the_work_is_done_or_fails():
    usual = torch.get_num_threads()
    seen = []
    try:
        with threads(usual + 1):
            seen.append(torch.get_num_threads())
            raise ValueError("the work fails")
    except ValueError:
        seen.append(torch.get_num_threads())
    assert seen == [usual + 1, usual]


def test_cached_files_count_as_free_memory_of_a_control_group(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 300\ninactive_file 400\n")
    assert _room_in_group(tmp_path, 5000) == 800


def test_a_control_group_without_limit_limits_nothing(tmp_path):
    assert _room_in_group(tmp_path, 5000) == 5000
    for name, text in (("max", "max\n"), ("current", "900\n"), ("stat", "")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _room_in_group(tmp_path, 5000) == 5000
