"""Builds the device's C++ part once for all processes and keeps it in a cache folder.

A build belongs to its sources, to PyTorch and to Python: another of them gets another file. The
first process builds while the others wait at a lock.
"""

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).parent / "csrc"
NAME = "fake_npu_device"


def load_device() -> ModuleType:
    """The extension module, built before where it is not there yet."""
    library = _cache() / f"{NAME}-{_fingerprint()}.so"
    if not library.exists():
        _build_once(library)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cache() -> Path:
    own = os.environ.get("FAKE_NPU_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "internvl2-fake-npu"
    folder = Path(own) if own else usual
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{torch.__version__} {sys.version} {_compiler()}".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _build_once(library: Path) -> None:
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(library)


def _build(library: Path) -> None:
    with TemporaryDirectory(dir=library.parent) as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_compile, sources, objects))
        linked = Path(folder) / library.name
        folders = cpp_extension.library_paths("cpu")
        _run(
            *("-shared", *map(str, objects), "-o", str(linked)),
            *(f"-L{path}" for path in folders),
            *(f"-Wl,-rpath,{path}" for path in folders),
            *("-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"),
        )
        linked.replace(library)


def _compile(source: Path, to: Path) -> None:
    folders = [*cpp_extension.include_paths("cpu"), sysconfig.get_paths()["include"]]
    abi = int(torch.compiled_with_cxx11_abi())
    _run(
        *("-c", str(source), "-o", str(to), "-O1", "-g0", "-fPIC", "-std=c++20", "-w"),
        *(f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-DTORCH_EXTENSION_NAME={NAME}"),
        *(f"-isystem{folder}" for folder in folders),
    )


def _run(*arguments: str) -> None:
    ran = subprocess.run([_compiler(), *arguments], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"the fake NPU does not build:\n{ran.stderr[-8000:]}")
