"""Logits to tokens, for rows with different wishes in one batch.

Order, as in Hugging Face's generation: repetition, presence and frequency penalties, n-grams, the
ban of stop tokens, temperature, top-k, top-p, min-p. Noise comes from a counter, not a generator: a
hash of the request's seed, the number of the token and the vocabulary index, so a seeded request
gets the same tokens whatever shares its batch. Nothing here waits for the device, and a step
touches only the rows that ask for something.
"""

import hashlib
from array import array
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from internvl2.device import upload
from internvl2.engine.sequence import Sequence

NO_TOKEN = -1
"""Pads histories on the left."""
UNLIMITED = 2**31 - 1
"""More than any vocabulary or answer has; larger wishes mean the same and fit no tensor."""


@dataclass(frozen=True)
class Penalties:
    """What rows that look back on their own tokens need."""

    rows: Int[Tensor, " some"]
    history: Int[Tensor, "some length"]
    """Tokens written so far, aligned to the right."""
    is_leading: Tensor
    """[some, length]: tokens that only the repetition penalty and n-grams see."""
    repetition: Float[Tensor, " some"]
    presence: Float[Tensor, " some"]
    frequency: Float[Tensor, " some"]
    ngram_size: Int[Tensor, " some"]
    ngram_sizes: tuple[int, ...]
    """The different sizes that occur, known to the host."""


@dataclass(frozen=True)
class Randomness:
    """What rows that draw their token need."""

    rows: Int[Tensor, " some"]
    temperature: Float[Tensor, " some"]
    top_k: Int[Tensor, " some"]
    top_p: Float[Tensor, " some"]
    log_min_p: Float[Tensor, " some"]
    keys: Int[Tensor, "some two"]
    """Two 32-bit numbers from the seed and the number of the token."""
    truncates: bool
    """Whether any row has a top-k or top-p, which need the logits in order."""


@dataclass(frozen=True)
class SamplingBatch:
    """The wishes of every row, ready on the device."""

    penalties: Penalties | None
    bans: Int[Tensor, "two bans"] | None
    """Rows, and the token that each may not take."""
    randomness: Randomness | None
    logprobs: Int[Tensor, " some"] | None
    """Rows that report probabilities."""
    num_top: int
    """Most alternatives that any row asks for."""

    @classmethod
    def of(
        cls,
        sequences: Rows[Sequence],
        device: torch.device,
        written: Rows[int] | None = None,
    ) -> "SamplingBatch":
        """The wishes of these sequences for their next token.

        `written` are the tokens that each will have written by then, where it does not know all of
        them yet; such a sequence must not use its history.
        """
        written = [s.num_generated for s in sequences] if written is None else written
        reporting = [i for i, s in enumerate(sequences) if s.params.logprobs is not None]
        return cls(
            _penalties(sequences, device),
            _bans(sequences, written, device),
            _randomness(sequences, written, device),
            upload(torch.tensor(reporting), device) if reporting else None,
            max((sequences[i].params.logprobs or 0 for i in reporting), default=0),
        )


@dataclass(frozen=True)
class RawLogprobs:
    """Logarithms of the model's own probabilities, for the rows that report them, in order."""

    chosen: Float[Tensor, " some"]
    top_values: Float[Tensor, "some top"]
    top_ids: Int[Tensor, "some top"]


@dataclass(frozen=True)
class Sampled:
    """The next token of every row; still on the device."""

    ids: Int[Tensor, " rows"]
    logprobs: RawLogprobs | None


def sample(logits: Float[Tensor, "rows vocab"], batch: SamplingBatch) -> Sampled:
    """Chooses the next token of every row."""
    scores = logits
    if batch.penalties is not None or batch.bans is not None:
        scores = logits.clone()
    if batch.penalties is not None:
        _penalize(scores, batch.penalties)
    if batch.bans is not None:
        # A tensor made on the device: assigning a number would wait for a copy of it.
        scores.index_put_((batch.bans[0], batch.bans[1]), scores.new_full((), -torch.inf))
    ids = scores.argmax(dim=-1)
    if batch.randomness is not None:
        rows = batch.randomness.rows
        ids = ids.index_copy(0, rows, _draw(scores[rows], batch.randomness))
    if batch.logprobs is None:
        return Sampled(ids, None)
    return Sampled(ids, _report(logits[batch.logprobs], ids[batch.logprobs], batch.num_top))


def choose(logits: Float[Tensor, "rows vocab"], wishes: Randomness | None) -> Int[Tensor, " rows"]:
    """The next tokens of rows that differ in randomness alone, without anything of the host.

    The wishes are those of all rows; a temperature of 0 takes the most probable token.
    """
    ids = logits.argmax(dim=-1)
    if wishes is None:
        return ids
    return torch.where(wishes.temperature > 0, _draw(logits, wishes), ids)


def noise_keys(sequences: Rows[Sequence], written: Rows[int]) -> Int[np.ndarray, "some two"]:
    """What the noise of each sequence's next token follows from, behind so many written ones."""
    pairs = zip(sequences, written, strict=True)
    digests = (_noise_digest(sequence.seed, count) for sequence, count in pairs)
    return np.frombuffer(b"".join(digests), "<u4").astype(np.int64).reshape(-1, 2)


def _penalties(sequences: Rows[Sequence], device: torch.device) -> Penalties | None:
    rows = [i for i, s in enumerate(sequences) if s.params.uses_history]
    if not rows:
        return None
    some = [sequences[i] for i in rows]
    ngram_sizes = [min(s.params.no_repeat_ngram_size, UNLIMITED) for s in some]
    length = max(len(s.leading_ids) + s.num_generated for s in some)
    history = torch.full((len(some), length), NO_TOKEN, dtype=torch.int64)
    is_leading = torch.zeros(len(some), length, dtype=torch.bool)
    for row, s in enumerate(some):
        seen = array("q", [*s.leading_ids, *s.generated_ids])
        first = length - len(seen)
        if seen:
            # By its buffer: reading a list number by number takes long for a long answer.
            history[row, first:] = torch.frombuffer(seen, dtype=torch.int64)
        is_leading[row, first : first + len(s.leading_ids)] = True
    return Penalties(
        upload(torch.tensor(rows), device),
        upload(history, device),
        upload(is_leading, device),
        upload(torch.tensor([s.params.repetition_penalty for s in some]), device),
        upload(torch.tensor([s.params.presence_penalty for s in some]), device),
        upload(torch.tensor([s.params.frequency_penalty for s in some]), device),
        upload(torch.tensor(ngram_sizes), device),
        tuple(set(ngram_sizes) - {0}),
    )


def _bans(sequences: Rows[Sequence], written: Rows[int], device: torch.device) -> Tensor | None:
    pairs = [
        (row, token)
        for row, (s, count) in enumerate(zip(sequences, written, strict=True))
        if count < s.params.min_tokens and not s.params.ignore_eos
        for token in sorted(s.stop_token_ids)
    ]
    return upload(torch.tensor(pairs), device).T if pairs else None


def _randomness(
    sequences: Rows[Sequence], written: Rows[int], device: torch.device
) -> Randomness | None:
    rows = [i for i, s in enumerate(sequences) if s.params.temperature > 0]
    if not rows:
        return None
    some = [sequences[i] for i in rows]
    params = [s.params for s in some]
    return Randomness(
        upload(torch.tensor(rows), device),
        upload(torch.tensor([float(p.temperature) for p in params]), device),
        upload(torch.tensor([min(p.top_k, UNLIMITED) for p in params]), device),
        upload(torch.tensor([float(p.top_p) for p in params]), device),
        upload(torch.tensor([float(p.min_p) for p in params]).log(), device),
        upload(torch.from_numpy(noise_keys(some, [written[i] for i in rows])), device),
        any(p.truncates for p in params),
    )


def _noise_digest(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()


def _penalize(scores: Float[Tensor, "rows vocab"], penalties: Penalties) -> None:
    """Changes the rows concerned, in place."""
    x = scores[penalties.rows]
    history = penalties.history
    counts = _count(history, x.shape[1])
    written = _count(history.masked_fill(penalties.is_leading, NO_TOKEN), x.shape[1])
    factor = penalties.repetition[:, None]
    x = torch.where(counts > 0, torch.where(x < 0, x * factor, x / factor), x)
    x = x - penalties.frequency[:, None] * written
    x = x - penalties.presence[:, None] * (written > 0)
    for size in penalties.ngram_sizes:
        has_size = penalties.ngram_size == size
        x = x.masked_fill(_repeats(history, size, x.shape[1]) & has_size[:, None], -torch.inf)
    scores.index_copy_(0, penalties.rows, x)


def _count(history: Int[Tensor, "some length"], vocab: int) -> Float[Tensor, "some vocab"]:
    """How often each token occurs; padding is counted in a column that is cut off."""
    counts = torch.zeros(len(history), vocab + 1, device=history.device)
    tokens = history.masked_fill(history == NO_TOKEN, vocab)
    return counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=counts.dtype))[:, :vocab]


def _repeats(history: Int[Tensor, "some length"], size: int, vocab: int) -> Tensor:
    """[some, vocab]: tokens that would write a run of `size` tokens for the second time."""
    if history.shape[1] < size:
        return torch.zeros(len(history), vocab, dtype=torch.bool, device=history.device)
    runs = history.unfold(1, size, 1)  # [some, runs, size]
    newest = history[:, history.shape[1] - size + 1 :]
    is_equal = (runs[..., :-1] == newest[:, None]).all(-1) & (runs != NO_TOKEN).all(-1)
    return _count(runs[..., -1].masked_fill(~is_equal, NO_TOKEN), vocab) > 0


def _draw(scores: Float[Tensor, "some vocab"], wishes: Randomness) -> Int[Tensor, " some"]:
    """A token of each row by the Gumbel-max trick (1411.0030)."""
    x = scores.float()
    # From the largest on, so that a tiny temperature leaves it at 0 and overflows to -inf only.
    coldest = torch.finfo(torch.float32).tiny
    x = (x - x.amax(-1, keepdim=True)) / wishes.temperature.clamp(min=coldest)[:, None]
    if wishes.truncates:
        x = _truncate(x, wishes)
    x = x.masked_fill(x < x.amax(-1, keepdim=True) + wishes.log_min_p[:, None], -torch.inf)
    return (x + _gumbel(wishes.keys, x.shape[1])).argmax(-1)


def _truncate(x: Float[Tensor, "some vocab"], wishes: Randomness) -> Float[Tensor, "some vocab"]:
    """Leaves the top-k tokens, and of them the fewest that reach top-p; always at least one."""
    values, order = x.sort(dim=-1, descending=True)
    ranks = torch.arange(x.shape[1], device=x.device)
    top_k = torch.where(wishes.top_k > 0, wishes.top_k, x.shape[1])
    values = values.masked_fill(ranks >= top_k[:, None], -torch.inf)
    shares = values.softmax(-1)
    before = shares.cumsum(-1) - shares
    is_cut = (before >= wishes.top_p[:, None]) & (wishes.top_p < 1)[:, None] & (ranks > 0)
    return torch.empty_like(x).scatter_(1, order, values.masked_fill(is_cut, -torch.inf))


def _gumbel(keys: Int[Tensor, "some two"], vocab: int) -> Float[Tensor, "some vocab"]:
    """Gumbel noise from a counter; whole numbers up to the last step, so alike on every device."""
    counter = torch.arange(vocab, device=keys.device)
    bits = _mix(_mix(counter ^ keys[:, :1]) ^ keys[:, 1:])
    # Small shares give large noise and keep their precision; 1 would give none at all.
    share = ((bits.float() + 0.5) / 2**32).clamp(max=1 - 2**-24)
    return -(-torch.log1p(-share)).log()


def _mix(x: Int[Tensor, "some vocab"]) -> Int[Tensor, "some vocab"]:
    """The finalizer of MurmurHash3 on 32-bit numbers in 64-bit tensors."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _report(
    logits: Float[Tensor, "some vocab"], ids: Int[Tensor, " some"], num_top: int
) -> RawLogprobs:
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
    chosen = logprobs.gather(1, ids[:, None])[:, 0]
    return RawLogprobs(chosen, top.values, top.indices)
