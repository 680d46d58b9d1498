"""Losses, gradients, optimizer steps and packed losses equal what the official code recorded."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from internvl2.checkpoint.layouts import rules
from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions
from internvl2.processing.conversation import Video
from internvl2.processing.image import PictureOptions
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.readers import RecordOptions, from_opengvlab

pytestmark = pytest.mark.parity

CASES = [
    "A_internlm2",
    "A_internlm2_ntk",
    "B_qwen2",
    "C_phi3",
    "D_llama3_vit6b",
    "D2_llama3_ntk",
    "E_qwen25_internvl2_5",
    "E2_internlm2_internvl2_5",
]
IGNORED = -100
WEIGHTS = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: n**-0.5}
"""What each learned token counts in a sample with n of them (official `loss_reduction`)."""


@dataclass(frozen=True)
class Sample:
    ids: torch.Tensor
    labels: torch.Tensor
    tiles: torch.Tensor


@dataclass(frozen=True)
class Case:
    record: object
    model: InternVL
    processor: Processor
    pictures: Path

    def sample(self, name: str) -> Sample:
        """A recorded item, encoded by us."""
        item = next(i for i in self.record.train["items"] if i["name"] == name)["item"]
        options = RecordOptions(
            strip_turns=self.processor.template.name == "internlm2-chat", max_tiles=2
        )
        root = self.pictures
        messages = from_opengvlab(item, root, options)
        messages = [
            replace(m, content=tuple(_with_frames(p, root) for p in m.content)) for m in messages
        ]
        prompt = self.processor.encode(messages, options=EncodeOptions(add_generation_prompt=False))
        ids, learned = torch.tensor(prompt.token_ids), torch.tensor(prompt.is_target)
        return Sample(ids, ids.where(learned, IGNORED), torch.from_numpy(prompt.tiles))


@lru_cache
def build(record, pictures: Path) -> Case:
    model = load_model(record.checkpoint, dtype=torch.float32)
    processor = Processor.from_directory(
        record.checkpoint,
        model.config,
        frame_label="Frame-{}",
        pictures=PictureOptions(official=True),
    )
    return Case(record, model, processor, pictures)


def _with_frames(part, root):
    """The recorded loader gave the set's pictures, then the first one turned by 90 degrees."""
    if not isinstance(part, Video):
        return part
    first, second = (
        Image.open(root / name).convert("RGB") for name in ("image1.jpg", "image3.jpg")
    )
    return replace(part, source=(first, second, first.rotate(90)), num_frames=3)


@pytest.fixture(params=CASES)
def case(request, recording, data):
    return build(recording(request.param), data("official", "pictures"))


def token_losses(model: InternVL, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy and label of every token that has a next one in its own sample, packed."""
    lengths = [len(s.ids) for s in samples]
    tiles = torch.cat([s.tiles for s in samples])
    hidden = model(
        torch.cat([s.ids for s in samples]),
        Positions.packed(lengths),
        tiles,
        PackedAttention.of(lengths),
    )
    labels = torch.cat([F.pad(s.labels[1:], (0, 1), value=IGNORED) for s in samples])
    logits = model.logits(hidden)
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none"), labels


def mean_loss(model: InternVL, samples: list[Sample]) -> torch.Tensor:
    losses, labels = token_losses(model, samples)
    return losses.sum() / (labels != IGNORED).sum()


@torch.no_grad()
def test_the_loss_of_each_sample_is_equal(case):
    for name, expected in case.record.train["loss"].items():
        sample = case.sample(name)
        assert int((sample.labels[1:] != IGNORED).sum()) == expected["supervised_targets"]
        loss = mean_loss(case.model, [sample]).item()
        assert loss == pytest.approx(expected["loss"], rel=1e-5), name


@torch.no_grad()
def test_a_padded_batch_has_the_loss_of_its_samples(case):
    batch = case.record.train["batch"]
    samples = [case.sample(name) for name in batch["samples"]]
    packed = float(mean_loss(case.model, samples))
    assert packed == pytest.approx(batch["loss_from_separate_runs"], rel=1e-5)
    if case.model.config.decoder.rotary.kind == "plain":
        assert packed == pytest.approx(batch["loss_with_length_mask"], rel=1e-5)


def test_gradients_are_equal(case):
    expected = case.record.train["gradients"]
    model = case.model
    model.zero_grad()
    mean_loss(model, [case.sample(expected["sample"])]).backward()
    found = _official_gradients(model)
    assert set(found) == set(expected["norms"])
    for name, norm in expected["norms"].items():
        assert float(found[name].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-7), name
    for key, value in case.record.train_arrays.items():
        if key.startswith("grad:"):
            ours = found[key.removeprefix("grad:")]
            torch.testing.assert_close(ours, value, rtol=1e-3, atol=1e-5)
    model.zero_grad()


def test_three_optimizer_steps_are_equal(case):
    expected = case.record.train["adamw_3_steps"]
    model = load_model(case.record.checkpoint, dtype=torch.float32)
    sample = case.sample(expected["sample"])
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=expected["lr"],
        betas=tuple(expected["betas"]),
        eps=expected["eps"],
        weight_decay=expected["weight_decay_all_params"],
    )
    for loss, norm in expected["loss_and_grad_norm"]:
        optimizer.zero_grad()
        ours = mean_loss(model, [sample])
        ours.backward()
        clipped = torch.nn.utils.clip_grad_norm_(model.parameters(), expected["clip"])
        optimizer.step()
        assert ours.item() == pytest.approx(loss, rel=2e-4)
        assert float(clipped) == pytest.approx(norm, rel=1e-3)


@torch.no_grad()
def test_packs_have_the_weighted_losses_of_their_samples(case, expand):
    packing = case.record.train["packing"]
    samples = [case.sample(name) for name in packing["samples_in_order"]]
    waiting = list(samples)
    for pack in packing["packs"]:
        members = list(_members(pack, waiting, expand))
        losses, labels = token_losses(case.model, members)
        counts = [int((s.labels != IGNORED).sum()) for s in members]
        sizes = [len(s.ids) for s in members]
        for reduction, weight in WEIGHTS.items():
            per_sample = torch.tensor([weight(n) if n else 0.0 for n in counts])
            weights = per_sample.repeat_interleave(torch.tensor(sizes)) * (labels != IGNORED)
            loss = float((weights * losses).sum() / weights.sum())
            recorded = pack["losses"][reduction]
            assert loss == pytest.approx(recorded["separate_runs"], rel=1e-5)
            if case.model.config.decoder.rotary.kind == "plain":
                assert loss == pytest.approx(recorded["official_packed"], rel=1e-5)


def _official_gradients(model: InternVL) -> dict[str, torch.Tensor]:
    """Our gradients under the official names, fused and interleaved as the weights are."""
    ours = {name: p.grad for name, p in model.named_parameters()}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return {
        theirs: gradient
        for rule in rules("opengvlab", model.config, shapes)
        for theirs, gradient in zip(
            rule.theirs, rule.write([ours[name] for name in rule.ours]), strict=True
        )
    }


def _members(pack: dict, waiting: list[Sample], expand):
    """The samples that a recorded pack is made of, taken from those that wait in their order."""
    ids = torch.tensor(expand(pack["input_ids_rle"]))
    start = 0
    for _, length in pack["data_index_rle"]:
        segment = ids[start : start + length]
        index = next(i for i, s in enumerate(waiting) if torch.equal(s.ids, segment))
        yield waiting.pop(index)
        start += length
