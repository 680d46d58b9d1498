"""Packs give the labels, loss weights and losses that the official packed data set recorded."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from internvl2.checkpoint.store import load_model
from internvl2.model.internvl import InternVL
from internvl2.processing.image import PictureOptions
from internvl2.processing.processor import Processor
from internvl2.train.data.dataset import Dataset, Sample
from internvl2.train.data.filling import Limits
from internvl2.train.data.formats import SourceOptions, from_records
from internvl2.train.data.packing import IGNORED, TrainBatch, pack_samples, with_tile_bucket
from internvl2.train.step_loss import pack_loss

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
WEIGHTINGS = ("token", "sample", "square")


@lru_cache
def model_of(checkpoint: Path) -> InternVL:
    return load_model(checkpoint, dtype=torch.float32)


@lru_cache
def samples_of(record, pictures: Path) -> dict[str, Sample]:
    """The recorded items by name, through our data set."""
    config = model_of(record.checkpoint).config
    processor = Processor.from_directory(
        record.checkpoint, config, frame_label="Frame-{}",
        pictures=PictureOptions(official=True),
    )  # fmt: skip
    names = record.train["packing"]["samples_in_order"]
    items = {item["name"]: item["item"] for item in record.train["items"]}
    options = SourceOptions(root=pictures, max_tiles=2, template=processor.template.name)
    source = from_records([items[name] for name in names], options)
    dataset = Dataset(source, processor, Limits(4096, 40), shuffle=False)
    return {name: dataset.encode(number) for number, name in enumerate(names)}


@pytest.fixture(params=CASES)
def case(request, recording):
    return recording(request.param)


@pytest.fixture
def packs(case, data, expand):
    """Each recorded pack with our samples for it, in its order."""
    waiting = list(samples_of(case, data("official", "pictures")).values())
    found = []
    for pack in case.train["packing"]["packs"]:
        ids, start, members = expand(pack["input_ids_rle"]), 0, []
        for _, length in pack["data_index_rle"]:
            segment = ids[start : start + length]
            index = next(i for i, s in enumerate(waiting) if s.prompt.token_ids == segment)
            members.append(waiting.pop(index))
            start += length
        found.append((pack, members))
    return found


def test_ids_labels_and_weights_of_a_pack_are_the_official_ones(packs, expand):
    for recorded, members in packs:
        length = recorded["padded_length"]
        for weighting in WEIGHTINGS:
            pack = pack_samples(members, length, weighting)
            ids, labels = (expand(recorded[key]) for key in ("input_ids_rle", "labels_rle"))
            used = sum(pack.lengths[: len(members)])
            assert pack.tokens[:used].tolist() == ids[:used]
            # Recorded labels and weights stand at the token that is learned, ours before it.
            wanted = (labels + [IGNORED] * length)[1 : length + 1]
            assert pack.labels.tolist() == wanted
            weights = expand(recorded["loss_weight_rle"][weighting])[1:]
            assert pack.weights[:-1].tolist() == pytest.approx(weights, rel=1e-6)


@torch.no_grad()
def test_a_packed_loss_is_the_weighted_mean_of_separate_runs(case, packs):
    model = model_of(case.checkpoint)
    for recorded, members in packs:
        for weighting in WEIGHTINGS:
            pack = pack_samples(members, recorded["padded_length"], weighting)
            pack = with_tile_bucket(pack, model.config.tile_size, pack.num_tiles + 1)
            batch = TrainBatch.of(pack)
            loss = float(pack_loss(model, batch, 1 / batch.weight_sum))
            assert loss == pytest.approx(recorded["losses"][weighting]["separate_runs"], rel=1e-5)


@torch.no_grad()
def test_a_sample_learns_the_same_alone_and_in_company(case, packs):
    model = model_of(case.checkpoint)
    recorded, members = packs[0]
    together = token_losses(model, pack_samples(members, recorded["padded_length"]))
    start = 0
    for member in members:
        length = len(member.prompt.token_ids)
        alone = token_losses(model, pack_samples([member], length))
        torch.testing.assert_close(together[start : start + length], alone, rtol=1e-4, atol=1e-4)
        start += length


def token_losses(model: InternVL, pack) -> torch.Tensor:
    pack = with_tile_bucket(pack, model.config.tile_size, pack.num_tiles)
    return _losses(model, TrainBatch.of(pack))


def _losses(model: InternVL, batch: TrainBatch) -> torch.Tensor:
    visual = None
    if batch.num_tiles:
        visual = model.encode_tiles(batch.tiles)[: batch.num_tiles].flatten(0, 1)
    x = model.embed(batch.tokens, visual)
    hidden = model.decoder(x, batch.positions, batch.attention())
    logits = model.logits(hidden)
    return F.cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="none")


def test_our_samples_are_the_recorded_items(case, data):
    names = case.train["packing"]["samples_in_order"]
    items = {item["name"]: item for item in case.train["items"]}
    samples = samples_of(case, data("official", "pictures"))
    for number, name in enumerate(names):
        assert samples[name].where == f"records:{number + 1}"
        tiles = items[name]["num_tiles"]
        if samples[name].prompt.media:
            assert len(samples[name].prompt.tiles) == tiles
