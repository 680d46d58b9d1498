from pathlib import Path

import pytest

from internvl2.cores import Cores, read_cores, read_quota


@pytest.mark.parametrize(
    ("cores", "threads", "reason"),
    [
        (Cores(8, 8), 8, "one for each core"),
        (Cores(16, 8), 8, "16 threads together"),
        (Cores(16, 8, quota=3.5), 3, "time for 3.5 of 8 cores"),
        (Cores(8, 8, quota=0.5), 1, "time for 0.5 of 8 cores"),
        (Cores(4, 4, quota=64), 4, "one for each core"),
        (Cores(1, 1), 1, "one for each core"),
    ],
)
def test_threads_are_physical_cores_within_the_quota(cores: Cores, threads: int, reason: str):
    assert cores.threads == threads
    assert reason in cores.reason


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_container_has_the_quota_of_its_control_group(tmp_path: Path):
    write(tmp_path / "cpu.max", "150000 100000\n")
    assert read_quota(tmp_path, tmp_path / "none") == 1.5
    write(tmp_path / "cpu.max", "max 100000\n")
    assert read_quota(tmp_path, tmp_path / "none") is None


def test_the_least_quota_of_the_groups_around_a_process_counts(tmp_path: Path):
    write(tmp_path / "own", "0::/user.slice/job\n")
    write(tmp_path / "user.slice" / "cpu.max", "200000 100000\n")
    write(tmp_path / "user.slice" / "job" / "cpu.max", "max 100000\n")
    assert read_quota(tmp_path, tmp_path / "own") == 2


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path):
    write(tmp_path / "own", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    for name, text in (("cpu.cfs_quota_us", "400000\n"), ("cpu.cfs_period_us", "100000\n")):
        write(tmp_path / "cpu,cpuacct" / "box" / name, text)
    assert read_quota(tmp_path, tmp_path / "own") == 4
    write(tmp_path / "cpu,cpuacct" / "box" / "cpu.cfs_quota_us", "-1\n")
    assert read_quota(tmp_path, tmp_path / "own") is None


def test_this_machine_has_cores():
    cores = read_cores()
    assert 1 <= cores.threads <= cores.physical <= cores.logical
