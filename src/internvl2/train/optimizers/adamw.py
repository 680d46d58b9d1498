"""AdamW whose bf16 weights are halves of exact fp32 ones, so that no small step is lost.

A bf16 weight has 8 bits: at fine-tuning rates nearly every step of plain bf16 AdamW is rounded away
(96 % of the whole update in 200 steps at 1e-5). Here the missing 16 bits lie in the optimizer's
state (`exact`), and the averages may take 8 bits each (`moments`). Everything is plain tensor
arithmetic, which runs on any device.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from internvl2.train.optimizers.exact import join, split
from internvl2.train.optimizers.moments import (
    BLOCK,
    PositiveCodes,
    SignedCodes,
    decode_positive,
    decode_signed,
    encode_positive,
    encode_signed,
    has_whole_blocks,
)
from internvl2.train.sharding import local

CHUNK = 2**24
"""Numbers updated at once: an embedding of 400 million needs no fp32 copy of itself."""
COMPILED_CHUNK = 2**26
"""The same for compiled updates, which keep next to nothing between their operations."""
SMALL = 2**16
"""Parameters up to this size are updated together, since each kernel would do next to nothing."""
SMALL_FOR_A_GPU = 2**20
"""The same for a device that is done with an adapter's matrix before the host has sent the next."""
TOGETHER = 2**24
"""Numbers that are updated together at most: copies of them exist meanwhile."""

Group = dict[str, Any]
State = dict[str, Tensor]
Moments = Literal["fp32", "8bit"]


@dataclass(frozen=True)
class Rates:
    """The numbers of one AdamW step; tensors where they change, so that nothing recompiles."""

    keep: Float32[Tensor, ""]
    """1 - learning rate * weight decay."""
    size: Float32[Tensor, ""]
    """Learning rate over the mean's bias correction."""
    correction: Float32[Tensor, ""]
    """Root of the squares' bias correction."""
    scale: Float32[Tensor, ""]
    """What gradients are multiplied with: global clipping."""
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Slots:
    """What belongs to the same weights, in one shape."""

    gradient: Tensor
    weight: Tensor
    mean: Tensor
    square: Tensor
    residual: Tensor | None

    @property
    def rest(self) -> Tensor:
        """The residual of weights that have one."""
        assert self.residual is not None
        return self.residual

    def map(self, change: Callable[[Tensor], Tensor]) -> "Slots":
        """Each tensor changed."""
        residual = None if self.residual is None else change(self.residual)
        gradient, weight = change(self.gradient), change(self.weight)
        return Slots(gradient, weight, change(self.mean), change(self.square), residual)

    def cut(self, start: int, stop: int) -> "Slots":
        """Part of each tensor."""
        return self.map(lambda t: t[start:stop])


class ExactAdamW(torch.optim.Optimizer):
    """AdamW (1711.05101) for bf16 weights with a 16-bit residual, and for ordinary fp32 weights.

    Steps are those of `torch.optim.AdamW` with fp32 weights. `moments="8bit"` stores the averages
    of matrices whose rows are whole blocks of 128 in 8 bits each, about a quarter of the memory.
    Of weights divided over processes it moves the rows that are here, and has state for them alone.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        moments: Moments = "fp32",
        compiled: bool = False,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        for parameter in self._parameters():
            if parameter.dtype not in (torch.bfloat16, torch.float32):
                raise ValueError(
                    f"weights in {parameter.dtype} cannot be trained; use bfloat16 or float32"
                )
        self._moments: Moments = moments
        self._index = {p: i for i, p in enumerate(self._parameters())}
        self._update, self._update_8bit = _update, _update_8bit
        self._chunk = COMPILED_CHUNK if compiled else CHUNK
        if compiled:
            self._update = torch.compile(_update, dynamic=True)
            self._update_8bit = torch.compile(_update_8bit, dynamic=True)

    @overload
    def step(self, closure: None = None, *, scale: Tensor | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, scale: Tensor | None = None) -> float: ...
    @torch.no_grad()
    def step(
        self, closure: Callable[[], float] | None = None, *, scale: Tensor | None = None
    ) -> float | None:
        """Move every weight that has a gradient; gradients count `scale` times (clipping)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group, [p for p in group["params"] if p.grad is not None], scale)
        return loss

    @torch.no_grad()
    def master(self, parameter: nn.Parameter) -> Float32[Tensor, "*axes"]:
        """The exact fp32 weights behind a parameter, as far as they are here."""
        residual = self.state[parameter].get("residual")
        weight = local(parameter)
        return weight.float() if residual is None else join(weight, residual)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state bit for bit; torch's own would turn all of it into bf16."""
        saved = state_dict["param_groups"]
        sizes = [[len(g["params"]) for g in groups] for groups in (self.param_groups, saved)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the saved optimizer has groups of {sizes[1]} parameters; this one, of {sizes[0]}"
            )
        for group, other in zip(self.param_groups, saved, strict=True):
            group.update({key: value for key, value in other.items() if key != "params"})
            for parameter, index in zip(group["params"], other["params"], strict=True):
                entries = state_dict["state"].get(index, {})
                self.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in entries.items()
                }

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def _step_group(
        self, group: Group, parameters: Sequence[nn.Parameter], scale: Tensor | None
    ) -> None:
        together: dict[tuple[float, torch.dtype], list[nn.Parameter]] = {}
        rates: dict[float, Rates] = {}
        for parameter in parameters:
            state = self._advance(parameter)
            count = float(state["step"])
            if count not in rates:
                rates[count] = _rates(group, count, parameter, scale)
            if "mean_scales" in state:
                self._step_8bit(parameter, rates[count])
            elif _is_small(parameter):
                together.setdefault((count, parameter.dtype), []).append(parameter)
            else:
                self._step_large(parameter, rates[count])
        for (count, _), small in together.items():
            for some in _lists_of(small, TOGETHER):
                self._step_together(some, rates[count])

    def _advance(
        self, parameter: nn.Parameter, averages: Sequence[str] = ("mean", "square")
    ) -> State:
        """State of a parameter, made at its first step, with this step counted."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            weight = local(parameter)
            if weight.dtype is torch.bfloat16:
                state["residual"] = torch.zeros_like(weight, dtype=torch.int16)
            for name in averages:
                state.update(self._new_average(name, weight))
        state["step"] += 1
        return state

    def _new_average(self, name: str, weight: Tensor) -> State:
        if self._moments == "fp32" or not has_whole_blocks(weight):
            return {name: torch.zeros_like(weight, dtype=torch.float32)}
        dtype = torch.int8 if name == "mean" else torch.uint8
        blocks = weight.shape[1:].numel() // BLOCK
        return {
            name: torch.zeros_like(weight, dtype=dtype),
            f"{name}_scales": torch.zeros(len(weight), blocks, device=weight.device),
        }

    def _step_large(self, parameter: nn.Parameter, rates: Rates) -> None:
        slots = self._slots(parameter).map(lambda t: t.view(-1))
        for start in range(0, len(slots.weight), self._chunk):
            self._update(slots.cut(start, start + self._chunk), rates)

    def _step_together(self, parameters: Sequence[nn.Parameter], rates: Rates) -> None:
        """One update of many small parameters, laid end to end and put back."""
        slots = [self._slots(p).map(lambda t: t.view(-1)) for p in parameters]
        joined = Slots(
            torch.cat([s.gradient for s in slots]),
            torch.cat([s.weight for s in slots]),
            torch.cat([s.mean for s in slots]),
            torch.cat([s.square for s in slots]),
            None if slots[0].residual is None else torch.cat([s.rest for s in slots]),
        )
        self._update(joined, rates)
        sizes = [len(s.weight) for s in slots]
        put_back(joined.weight.split(sizes), [s.weight for s in slots])
        put_back(joined.mean.split(sizes), [s.mean for s in slots])
        put_back(joined.square.split(sizes), [s.square for s in slots])
        if joined.residual is not None:
            put_back(joined.residual.split(sizes), [s.rest for s in slots])

    def _step_8bit(self, parameter: nn.Parameter, rates: Rates) -> None:
        state = self.state[parameter]
        slots = self._slots(parameter).map(lambda t: t.flatten(1))
        noise = self.seeded(parameter)
        step = max(self._chunk // parameter.shape[1:].numel(), 1)
        for start in range(0, len(slots.weight), step):
            part = slots.cut(start, start + step)
            mean = SignedCodes(part.mean, state["mean_scales"][start : start + step])
            square = PositiveCodes(part.square, state["square_scales"][start : start + step])
            random = torch.rand(part.weight.shape, device=parameter.device, generator=noise)
            self._update_8bit(part, mean, square, random, rates)

    def _slots(self, parameter: nn.Parameter) -> "Slots":
        state = self.state[parameter]
        assert parameter.grad is not None
        gradient = local(parameter.grad).contiguous()
        return Slots(
            gradient, local(parameter), state["mean"], state["square"], state.get("residual")
        )

    def seeded(self, parameter: nn.Parameter) -> torch.Generator:
        """Random numbers that only the parameter's place and step decide, so that runs resume."""
        seed = int(self.state[parameter]["step"]) * 2**20 + self._index[parameter]
        return torch.Generator(parameter.device).manual_seed(seed)


def _is_small(parameter: nn.Parameter) -> bool:
    limit = SMALL if parameter.device.type == "cpu" else SMALL_FOR_A_GPU
    return local(parameter).numel() <= limit


def _lists_of(parameters: Sequence[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, in lists of at most so many numbers, or of one parameter."""
    some, numbers = [], 0
    for parameter in parameters:
        size = local(parameter).numel()
        if some and numbers + size > most:
            yield some
            some, numbers = [], 0
        some.append(parameter)
        numbers += size
    yield some


def _update(slots: Slots, rates: Rates) -> None:
    """One step in place, in the order of operations of `torch.optim.AdamW`."""
    first, second = rates.betas
    gradient = slots.gradient.float() * rates.scale
    slots.mean.lerp_(gradient, 1 - first)
    slots.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    roots = (slots.square.sqrt() / rates.correction).add_(rates.eps)
    move(slots.weight, slots.residual, slots.mean * rates.size / roots, rates.keep)


def _update_8bit(
    slots: Slots,
    mean: SignedCodes,
    square: PositiveCodes,
    noise: Float32[Tensor, "rows row"],
    rates: Rates,
) -> None:
    """The same with averages that are decoded before and encoded after."""
    means = decode_signed(mean.codes, mean.scales)
    squares = decode_positive(square.codes, square.scales)
    _update(Slots(slots.gradient, slots.weight, means, squares, slots.residual), rates)
    new_mean, new_square = encode_signed(means, noise), encode_positive(squares, noise)
    mean.codes.copy_(new_mean.codes)
    mean.scales.copy_(new_mean.scales)
    square.codes.copy_(new_square.codes)
    square.scales.copy_(new_square.scales)


def move(weight: Tensor, residual: Tensor | None, distance: Tensor, keep: Tensor) -> None:
    """Shrink the exact weights to the share `keep`, then go back by `distance`; in place."""
    if residual is None:
        weight.mul_(keep).sub_(distance)
        return
    halves = split(join(weight, residual).mul_(keep).sub_(distance))
    weight.copy_(halves.weight)
    residual.copy_(halves.residual)


def put_back(pieces: tuple[Tensor, ...], places: list[Tensor]) -> None:
    """Copy what was laid end to end to where it came from."""
    torch._foreach_copy_(places, pieces)  # pyright: ignore[reportPrivateImportUsage]


def _rates(group: Group, count: float, parameter: Tensor, scale: Tensor | None) -> Rates:
    """The step's numbers, filled in on the device: a copy from the host would wait for it."""
    rate, (first, second) = group["lr"], group["betas"]

    def number(value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float32, device=parameter.device)

    return Rates(
        keep=number(1 - rate * group["weight_decay"]),
        size=number(rate / (1 - first**count)),
        correction=number((1 - second**count) ** 0.5),
        scale=number(1.0) if scale is None else scale,
        betas=(first, second),
        eps=group["eps"],
    )
