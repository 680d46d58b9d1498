"""The forgetting guard: how far a run's model has moved from the one that it began with.

Before the first step the likeliest next tokens at the learned places of fixed samples are written
down with their probabilities; later models are asked the same. What is measured is the
Kullback-Leibler divergence of the first model's answers from theirs, all other tokens taken
together as one: never more than that over the whole vocabulary.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from internvl2.train.data.packing import TrainBatch
from internvl2.train.loss import CHUNK
from internvl2.train.parallel import World
from internvl2.train.sharding import is_divided, release
from internvl2.train.step_loss import PackLoss

LEAST = 1e-9
"""Probability that is always left to tokens that are not kept."""
CHANGED = {
    "pack": "the samples of guard.data",
    "pictures": "the pictures of guard.data, or how they are decoded and resized,",
}
"""What another digest in a file says."""


@dataclass(frozen=True)
class Likeliest:
    """The likeliest tokens at some places, and the logarithms of their probabilities."""

    ids: Int[Tensor, "rows kept"]
    scores: Float[Tensor, "rows kept"]


class ForgettingGuard:
    """What the first model answers, in a folder that all processes see."""

    def __init__(self, folder: Path, top_k: int, world: World) -> None:
        self.folder, self.top_k, self.world = folder, top_k, world

    @torch.no_grad()
    def remember(self, loss: PackLoss, packs: Iterable[TrainBatch]) -> None:
        """Write down what the model answers now, for this process's packs of the fixed samples."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, batch in self._to_run(loss, packs):
            kept = Likeliest(*loss.read(batch, partial(_likeliest, count=self.top_k)))
            if len(kept.ids):
                _save(path, kept, batch)
        release(loss)
        self.world.wait()

    def require(self, loss: PackLoss, packs: Iterable[TrainBatch]) -> None:
        """Raises where the first model's answers to this process's packs are not there."""
        for path, batch in self._to_run(loss, packs):
            _load(path, batch)

    @torch.no_grad()
    def divergence(self, loss: PackLoss, packs: Iterable[TrainBatch]) -> float:
        """Of the model as it is now, in nats per learned token; every process must ask."""
        total, rows = 0.0, 0
        for path, batch in self._to_run(loss, packs):
            first = _load(path, batch)
            total += float(loss.read(batch, partial(_divergence, first=first))[0])
            rows += len(first.ids)
        release(loss)
        total, rows = self.world.sum([total, rows])
        if not rows:
            raise ValueError("the samples of guard.data have no token to learn")
        return total / rows

    def _to_run(
        self, loss: PackLoss, packs: Iterable[TrainBatch]
    ) -> Iterator[tuple[Path, TrainBatch]]:
        """Packs with their files: a pack has the same number however many processes there are."""
        for step, batch in enumerate(packs):
            if batch.num_tokens or is_divided(loss):
                number = step * self.world.size + self.world.rank
                yield self.folder / f"pack-{number:05d}.safetensors", batch


def _likeliest(
    hidden: Float[Tensor, "rows dim"], head: Float[Tensor, "vocab dim"], count: int
) -> tuple[Tensor, ...]:
    """Ids and scores of the likeliest tokens; logits of a chunk of rows exist at once."""
    shape = (len(hidden), min(count, len(head)))
    ids = torch.empty(shape, dtype=torch.int64, device=hidden.device)
    scores = torch.empty(shape, device=hidden.device)
    for rows in _chunks(len(hidden)):
        scores[rows], ids[rows] = _scores(hidden[rows], head).topk(shape[1])
    return ids, scores


def _divergence(
    hidden: Float[Tensor, "rows dim"], head: Float[Tensor, "vocab dim"], first: Likeliest
) -> tuple[Tensor, ...]:
    """Sum over the rows of KL(first || now)."""
    total = torch.zeros((), device=hidden.device)
    for rows in _chunks(len(hidden)):
        then = first.scores[rows].to(hidden.device)
        now = _scores(hidden[rows], head).gather(1, first.ids[rows].to(hidden.device))
        then, now = _with_rest(then), _with_rest(now)
        total += (then.exp() * (then - now)).sum()
    return (total,)


def _scores(
    hidden: Float[Tensor, "rows dim"], head: Float[Tensor, "vocab dim"]
) -> Float[Tensor, "rows vocab"]:
    return (hidden @ head.T).float().log_softmax(1)


def _with_rest(scores: Float[Tensor, "rows kept"]) -> Float[Tensor, "rows all"]:
    """The scores, and that of all other tokens together."""
    rest = (1 - scores.exp().sum(1, keepdim=True)).clamp(min=LEAST)
    return torch.cat([scores, rest.log()], 1)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def _save(path: Path, kept: Likeliest, batch: TrainBatch) -> None:
    partial_path = path.with_suffix(".partial")
    tensors = {"ids": kept.ids.int().cpu(), "scores": kept.scores.cpu()}
    save_file(tensors, partial_path, _digests(batch))
    partial_path.replace(path)


def _load(path: Path, batch: TrainBatch) -> Likeliest:
    """What the first model answered to a pack; it must be the same pack, pictures and all."""
    if not len(batch.learned_rows):
        return Likeliest(torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1)))
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata() or {}
            kept = Likeliest(file.get_tensor("ids").long(), file.get_tensor("scores"))
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(
            f"what the first model answered is not in {path} ({error}); it is written before the "
            "first step: leave out guard.data, or begin anew with another --output"
        ) from error
    for name, digest in _digests(batch).items():
        if known.get(name) != digest:
            raise ValueError(
                f"{path} tells of other samples: {CHANGED[name]} changed since the run began; "
                "give them as they were, leave out guard.data, or begin anew with another --output"
            )
    return kept


def _digests(batch: TrainBatch) -> dict[str, str]:
    """Names for what a pack asks and where it learns, and for the pixels of its pictures."""
    texts = blake2b(digest_size=16)
    for tensor in (batch.tokens, batch.labels):
        texts.update(tensor.cpu().numpy().data)
    pictures = blake2b(b"".join(batch.tile_keys()), digest_size=16)
    return {"pack": texts.hexdigest(), "pictures": pictures.hexdigest()}
