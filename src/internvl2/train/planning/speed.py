"""How long a step takes: arithmetic, what layers move through memory, the update, and sums.

`MATMUL`, the share of the stated speed that matrix products reach, `MOVES`, how often what a layer
keeps goes through memory in a pass, `UPDATE_MOVES` and `LINK` were fitted to steps that were timed
on H200s with compiled layers (benchmarks/RESULTS.md, tests/train/planning/test_measured.py). Other
devices are taken to reach the same shares of what their makers state; nothing was timed on them.
"""

from dataclasses import dataclass

from internvl2.train.monitoring.flops import Flops, pack_flops
from internvl2.train.planning.activations import (
    Learning,
    kept_by_decoder_layer,
    kept_by_vision_layer,
)
from internvl2.train.planning.machine import Speeds
from internvl2.train.planning.memory import Step
from internvl2.train.recipe import Freeze

MATMUL = 0.74
MOVES = 5.0
UPDATE_MOVES = {"fp32": 39, "8bit": 222}
"""Bytes that would take as long to move as the update of a number, by format of the averages."""
LINK = 75 / 900
"""Share of the stated speed of its links at which a divided H200 gathered and summed."""
LOGIT_BYTES = 24
"""Moved per logit, in fp32 and back."""
NF4_BYTES = 8
"""Moved to make a 4-bit weight readable; estimated."""
SAMPLE = 1350
"""Tokens of a sample: attention costs their square."""
REFERENCE = Speeds(989, 4800, 900)
"""An H200: it orders strategies where nothing is known of a device."""


@dataclass(frozen=True, slots=True)
class Passes:
    """How often each part's layers run in a step's pack; going back counts two."""

    vision: float
    decoder: float


def tokens_per_second(step: Step, speeds: Speeds) -> float | None:
    """Of all processes together, in full packs; None for links whose speed is not known.

    Where features are kept they are on disk already: the tower does not run.
    """
    if step.processes > 1 and speeds.link is None:
        return None
    tokens = step.pack.tokens * step.packs * step.processes
    return tokens / (step.packs * _pack_seconds(step, speeds) + _step_seconds(step, speeds))


def _pack_seconds(step: Step, speeds: Speeds) -> float:
    """Forward and backward of a pack; gathering divided weights does not hide behind them."""
    arithmetic = _flops(step) / (speeds.tflops * 1e12 * MATMUL)
    moved = _moved(step)
    gathered = 0.0
    if step.parts > 1:
        others = 1 - 1 / step.parts
        fp32 = 4 / step.execution.number
        gathered = others * (2 * step.sizes.parameters + fp32 * step.sizes.gradients)
    return arithmetic + moved / (speeds.bandwidth * 1e9) + _over_link(gathered, speeds)


def _step_seconds(step: Step, speeds: Speeds) -> float:
    """The update, and the sum of gradients that every process has whole."""
    update = UPDATE_MOVES[step.recipe.optimizer.moments] * step.sizes.trained / step.parts
    summed = 0.0
    if step.processes > 1 and step.parts == 1:
        summed = 2 * (1 - 1 / step.processes) * step.sizes.gradients
    return update / (speeds.bandwidth * 1e9) + _over_link(summed, speeds)


def _over_link(count: float, speeds: Speeds) -> float:
    if not count:
        return 0
    assert speeds.link is not None
    return count / (speeds.link * 1e9 * LINK)


def _flops(step: Step) -> float:
    """Of a pack, with what is computed again."""
    recipe, again = step.recipe, step.recipe.recompute
    samples, rest = divmod(step.pack.tokens, SAMPLE)
    lengths = [SAMPLE] * samples + [rest] * (rest > 0)

    def flops(freeze: Freeze, learned: int) -> Flops:
        tiles = step.pack.tiles
        known = tiles if step.keeps_features else 0
        return pack_flops(step.config, freeze, lengths, tiles, learned, recipe.lora, known)

    forward = flops(Freeze(True, True, True, True), 0)
    extra = again.vision * forward.vision * (step.trained_vision > 0)
    extra += again.decoder * forward.decoder * step.learns_decoder
    return flops(recipe.kept, step.pack.learned).total + extra


def _passes(step: Step) -> Passes:
    share = step.trained_vision / max(step.config.used_vision_layers, 1)
    again = step.recipe.recompute
    learns = step.learns_decoder
    vision = 0 if step.keeps_features else 1 + share * (2 + again.vision)
    return Passes(vision, 1 + learns * (2 + again.decoder))


def _moved(step: Step) -> float:
    """Bytes that layers and the loss move through memory for a pack."""
    passes, config = _passes(step), step.config
    vision = kept_by_vision_layer(config.vision, Learning(), step.execution)
    decoder = kept_by_decoder_layer(config.decoder, step.decoder_learning, step.execution)
    vision *= step.states * config.used_vision_layers
    decoder *= step.pack.tokens * config.decoder.num_layers
    logits = step.pack.learned * config.decoder.vocab_size
    readable = step.sizes.quantised * (1 + passes.decoder) / 2
    moved = MOVES * (vision * passes.vision + decoder * passes.decoder)
    return moved + logits * LOGIT_BYTES + readable * NF4_BYTES
