"""The most memory that a recipe takes of a device: the largest of the moments of a step.

Weights, gradients and the optimizer's state are counted. What a pass keeps grows with tokens and
tiles (`activations`), and what a moment needs besides follows from the code that needs it: the
loss, a layer's gradients, the optimizer's update, gathered weights. Only `SLACK` and `GAPS` are
fitted, to the peaks that an H200 was seen to reserve (tests/train/planning/test_measured.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

from internvl2.config import InternVLConfig
from internvl2.train.loss import CHUNK
from internvl2.train.optimizers import adamw
from internvl2.train.parallel import BUCKET_BYTES
from internvl2.train.planning.activations import (
    Execution,
    Learning,
    kept_by_decoder_layer,
    kept_by_vision_layer,
)
from internvl2.train.planning.sizes import Sizes
from internvl2.train.recipe import Lora, Recipe

LEARNED_SHARE = 0.125
"""Of a pack's tokens; where most of them are visual, about a tenth."""
SLACK = 0.4 * 2**30
"""Libraries' workspaces, and the rest of large blocks."""
GAPS = 0.01
"""Share of what a pass needs that lies unused between other blocks."""
UPDATE_BYTES = {("fp32", True): 4, ("8bit", True): 16, ("fp32", False): 28, ("8bit", False): 44}
"""Temporary bytes per number that is updated, by format of the averages and compiled or not."""


@dataclass(frozen=True, slots=True)
class Pack:
    """What goes through the model at once."""

    tokens: int
    tiles: int
    learned: int

    @classmethod
    def fullest(cls, recipe: Recipe, config: InternVLConfig) -> "Pack":
        """The largest that a recipe allows."""
        tokens = recipe.packing.tokens
        tiles = min(recipe.packing.tiles, tokens // config.tokens_per_tile)
        return cls(tokens, tiles, int(tokens * LEARNED_SHARE))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the fullest moment of a step."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    loss: float = 0
    workspace: float = 0
    """A layer's gradients, gathered layers, updates, and gaps."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Step:
    """A step of a recipe in one of its processes, and what it needs at each moment."""

    recipe: Recipe
    config: InternVLConfig
    sizes: Sizes
    execution: Execution
    pack: Pack
    processes: int = 1

    @property
    def peak(self) -> Memory:
        """The fullest moment."""
        return max(self._moments(), key=lambda memory: memory.total)

    def _moments(self) -> Iterator[Memory]:
        """Memory from the vision tower's forward pass to the optimizer's update."""
        vision, decoder = self.vision_kept, self.decoder_kept
        early = self._gradients if self.packs > 1 else 0.0
        head = early or self.sizes.head_gradient
        everything = vision + decoder + self._hidden
        yield self._at(early, vision, self._vision_workspace)
        yield self._at(early, everything, 0, self._loss)
        yield self._at(head, everything, 0, self._head_back)
        yield self._at(head, everything + self._again(decoder=True), self._layer_back)
        if self.learns_decoder:
            rest = vision + self._hidden + self._recomputed_inputs
            whole = self._decoder_layer if self._recomputed_inputs else 0
            yield self._at(self._gradients, rest + whole, self._layer_back)
        embedding = self.sizes.outside_gradients - self.sizes.head_gradient
        yield self._at(self._gradients, vision, embedding)
        if self.trained_vision:
            back = vision + self._again(decoder=False)
            yield self._at(self._gradients, back, self._vision_workspace)
        yield self._at(self._gradients, 0, self._update)

    def _at(
        self, gradients: float, activations: float, workspace: float, loss: float = 0
    ) -> Memory:
        gaps = SLACK + GAPS * (activations + workspace + loss)
        return Memory(
            weights=self.sizes.parameters / self.parts + self.sizes.buffers,
            gradients=gradients,
            optimizer=self.sizes.optimizer / self.parts,
            activations=activations,
            loss=loss,
            workspace=workspace + self._gathered + self._packs_on_device + gaps,
        )

    @property
    def parts(self) -> int:
        """Into how many parts weights, gradients and state are divided."""
        return self.processes if self.recipe.shard else 1

    @property
    def packs(self) -> int:
        """Of a step, in each process."""
        return max(self.recipe.packs_per_step // self.processes, 1)

    @property
    def keeps_features(self) -> bool:
        """Whether the tower runs only for tiles that no pack has had before."""
        return self.recipe.feature_cache is not None

    @property
    def trained_vision(self) -> int:
        """How many vision layers learn, in their weights or in adapters."""
        used, freeze = self.config.used_vision_layers, self.recipe.freeze
        if not self.pack.tiles:
            return 0
        whole = self.recipe.lora.vision_rank or not freeze.vision
        return used if whole else min(freeze.vision_last, used)

    @property
    def learns_projector(self) -> bool:
        """Whether gradients go through the projector."""
        trained = not self.recipe.freeze.projector and self.pack.tiles > 0
        return self.trained_vision > 0 or trained

    @property
    def learns_decoder(self) -> bool:
        """Whether gradients go through the decoder's layers."""
        own = self.recipe.lora.decoder_rank or not self.recipe.freeze.decoder
        return bool(own) or self.learns_projector

    @property
    def decoder_learning(self) -> Learning:
        """What of a decoder layer is trained."""
        lora = self.recipe.lora
        return _learning(not self.recipe.kept.decoder, lora.decoder_rank, lora)

    @cached_property
    def vision_kept(self) -> float:
        """What the tower and the projector keep."""
        states = self.states
        first = self.config.used_vision_layers - self.trained_vision
        again = max(self._recomputed(self.config.vision.num_layers, "vision") - first, 0)
        again = min(again, self.trained_vision)
        whole = (self.trained_vision - again) * self._vision_layer
        inputs = again * states * self.config.vision.hidden_size * self.execution.number
        return whole + inputs + self._projector

    @cached_property
    def decoder_kept(self) -> float:
        """What the decoder's layers keep."""
        if not self.learns_decoder:
            return 0
        layers = self.config.decoder.num_layers
        whole = layers - self._recomputed(layers, "decoder")
        return whole * self._decoder_layer + self._recomputed_inputs

    @property
    def _recomputed_inputs(self) -> float:
        again = self._recomputed(self.config.decoder.num_layers, "decoder")
        return again * self._stream

    def _recomputed(self, layers: int, part: str) -> int:
        return round(layers * getattr(self.recipe.recompute, part))

    def _again(self, *, decoder: bool) -> float:
        """A layer whose activations are computed again when going back begins with one."""
        if decoder:
            share, layer = self.recipe.recompute.decoder, self._decoder_layer
            return layer if share == 1 and self.learns_decoder else 0
        return self._vision_layer if self.recipe.recompute.vision else 0

    @property
    def _stream(self) -> float:
        """Hidden states of all tokens."""
        return self.pack.tokens * self.config.decoder.hidden_size * self.execution.number

    @property
    def _hidden(self) -> float:
        """The last norm's input and output."""
        return 2 * self._stream

    @property
    def states(self) -> int:
        """Patches of all tiles, with a class token for each."""
        side = self.config.tile_size // self.config.vision.patch_size
        return self.pack.tiles * (side**2 + 1)

    @property
    def _decoder_layer(self) -> float:
        learning = self.decoder_learning
        kept = kept_by_decoder_layer(self.config.decoder, learning, self.execution)
        return self.pack.tokens * kept

    @property
    def _vision_layer(self) -> float:
        lora = self.recipe.lora
        learning = _learning(not lora.vision_rank, lora.vision_rank, lora)
        kept = kept_by_vision_layer(self.config.vision, learning, self.execution)
        return self.states * kept

    @property
    def _projector(self) -> float:
        """Its norm's input and output, and the input and output of its GELU."""
        if not self.learns_projector:
            return 0
        wide = self.config.vision.hidden_size * self.config.shuffle**2
        numbers = 2 * (wide + self.config.decoder.hidden_size)
        visual = self.pack.tiles * self.config.tokens_per_tile
        return visual * numbers * self.execution.number

    @property
    def _loss(self) -> float:
        """Logits of a chunk in fp32, twice; what is left of the chunk before; the head's part."""
        number, vocab = self.execution.number, self.config.decoder.vocab_size
        rows = min(self.pack.learned, CHUNK)
        before = (4 + number) if self.pack.learned > CHUNK else 0
        logits = rows * vocab * (8 + before)
        if not self.sizes.head_gradient:
            return logits
        product = rows * vocab * (4 + number + before) + self.sizes.head_gradient
        return self._head_sum + max(logits, product)

    @property
    def _head_sum(self) -> float:
        """The head's gradient while chunks are added: in fp32 unless there is one alone."""
        several = self.pack.learned > CHUNK
        return self.sizes.head_gradient * (4 / self.execution.number if several else 1)

    @property
    def _head_back(self) -> float:
        """The head's gradient before and after it is scaled, and that of the hidden states."""
        scaled = self.sizes.head_gradient if self.packs > 1 else 0
        return self._head_sum + scaled + self._stream

    @property
    def _layer_back(self) -> float:
        """Gradients of an MLP's activations and of a layer's weights, and weights made readable."""
        if not self.learns_decoder:
            return 0
        decoder, number = self.config.decoder, self.execution.number
        wide, inner = decoder.hidden_size, decoder.intermediate_size
        activations = self.pack.tokens * number * (3 * inner + 2 * wide)
        weights = self.sizes.layer_gradients * (1 if self.execution.compiled else 1 / 3)
        readable = self.sizes.quantised_matrix * (number if self.execution.compiled else 6)
        return activations + weights + readable

    @property
    def _vision_workspace(self) -> float:
        """Pixels, and the tensors of one layer while it runs."""
        vision, number = self.config.vision, self.execution.number
        pixels = self.pack.tiles * 3 * self.config.tile_size**2 * (8 + number)
        layer = self.states * number * (2 * vision.intermediate_size + 5 * vision.hidden_size)
        return max(pixels, layer)

    @property
    def _packs_on_device(self) -> int:
        """Tiles of this pack and of the next one, as bytes; where features are kept, as these.

        This pack's are laid out once more, which the norm of a projector that learns counts.
        """
        pixels = self.pack.tiles * 3 * self.config.tile_size**2
        if not self.keeps_features:
            return 2 * pixels
        return 2 * max(pixels, self._features) + (0 if self.learns_projector else self._features)

    @property
    def _features(self) -> int:
        """What the tower makes of a pack's tiles, as the projector reads it."""
        visual = self.pack.tiles * self.config.tokens_per_tile
        wide = self.config.vision.hidden_size * self.config.shuffle**2
        return visual * wide * self.execution.number

    @property
    def _gradients(self) -> float:
        return self.sizes.gradients / self.parts

    @property
    def _update(self) -> float:
        """The optimizer's temporary tensors, or a bucket of gradients that is summed."""
        compiled = self.execution.compiled
        chunk = adamw.COMPILED_CHUNK if compiled else adamw.CHUNK
        numbers = min(chunk, self.sizes.largest / self.parts)
        update = numbers * UPDATE_BYTES[self.recipe.optimizer.moments, compiled]
        if self.processes == 1 or self.recipe.shard:
            return update
        return max(update, BUCKET_BYTES, self.sizes.largest * self.execution.number)

    @property
    def _gathered(self) -> float:
        """Whole weights of two layers and of what no layer holds (FSDP2), and their copies.

        Copies and reduced gradients come from other streams, whose memory nothing else gets.
        """
        if self.parts == 1:
            return 0
        whole = self.sizes.outside + 2 * self.sizes.layer
        reduced = (self.sizes.outside_gradients + self.sizes.layer_gradients) / self.parts
        return 2 * whole + reduced * 4 / self.execution.number


def _learning(weights: bool, rank: int, lora: Lora) -> Learning:
    return Learning(weights, rank, lora.dropout > 0 and rank > 0, lora.dora and rank > 0)
