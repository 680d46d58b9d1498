"""Where kernels run in tests: in Triton's interpreter, or compiled where there is a GPU."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device that kernels are tried on; modules of kernels are to be imported within tests."""
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("there is a GPU: kernels are compiled for it, not interpreted")
        _let_lengths_bound_loops(monkeypatch)
    return torch.device(request.param)


def _let_lengths_bound_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes an int of an array with one number, which numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    usual: Callable[..., None] = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        usual(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
