from internvl2.device import _room_in_group


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
