"""Refuses packages whose kernels run on another maker's cards only."""

import sys
from importlib.abc import MetaPathFinder

PACKAGES = {"bitsandbytes", "flash_attn", "triton"}


class _Refusal(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"{fullname} has no kernels for an NPU", name=fullname)


def refuse() -> None:
    sys.meta_path.insert(0, _Refusal())
