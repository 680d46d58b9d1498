"""Runs recipes one after the other on the NPU and counts how often layers made the host wait.

`python train.py RECIPE...`; prints JSON.
"""

import json
import sys
from pathlib import Path

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from internvl2 import device as devices
from internvl2.model.decoder import DecoderLayer
from internvl2.model.vision import VisionLayer
from internvl2.train.recipe import Recipe
from internvl2.train.trainer import Trainer


class Watch:
    """Counts waits within layers, going forward.

    A thread that writes features waits for its own copies meanwhile, which holds nothing up.
    """

    def __init__(self, testing) -> None:
        self.testing, self.layers, self.waits = testing, 0, 0
        self._before = 0
        register_module_forward_pre_hook(self._begin)
        register_module_forward_hook(self._end)

    def _begin(self, module: nn.Module, inputs: object) -> None:
        if isinstance(module, DecoderLayer | VisionLayer):
            self._before = self._count()

    def _end(self, module: nn.Module, inputs: object, outputs: object) -> None:
        if isinstance(module, DecoderLayer | VisionLayer):
            self.layers += 1
            self.waits += self._count() - self._before

    def _count(self) -> int:
        kinds = self.testing.synchronizations_by_kind()
        return sum(number for kind, number in kinds.items() if kind != "wait")


def main() -> None:
    picked = devices.pick()
    assert picked.type == "npu"
    from torch_npu import testing

    watch = Watch(testing)
    for file in sys.argv[1:]:
        Trainer(Recipe.read(Path(file))).run()
    kernels = sorted(name for name in testing.recorded_operators() if name.startswith("npu::"))
    print(json.dumps({"layers": watch.layers, "waits": watch.waits, "kernels": kernels}))


main()
