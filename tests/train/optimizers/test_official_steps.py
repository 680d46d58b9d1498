"""The trainer's loss, clipping and optimizer give the steps that the official code recorded."""

import pytest
import torch

from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions
from internvl2.processing.image import PictureOptions
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.prompt import Prompt
from internvl2.processing.readers import RecordOptions, from_opengvlab
from internvl2.train.loss import chunked_cross_entropy
from internvl2.train.optimizers.audit import GradientAudit
from internvl2.train.optimizers.groups import build_optimizer, freeze_parts, gradient_norms
from internvl2.train.recipe import Freeze, Optimizer

pytestmark = pytest.mark.parity


def mean_loss(model: InternVL, prompt: Prompt) -> torch.Tensor:
    tokens, learned = torch.tensor(prompt.token_ids), torch.tensor(prompt.is_target)
    lengths = (len(tokens),)
    tiles = torch.from_numpy(prompt.tiles)
    hidden = model(tokens, Positions.packed(lengths), tiles, PackedAttention.of(lengths))
    rows = learned[1:].nonzero()[:, 0]
    weights = torch.full((len(rows),), 1 / len(rows))
    labels = tokens[1:][rows]
    return chunked_cross_entropy(hidden[rows], model.decoder.head.weight, labels, weights, 16)


@pytest.mark.parametrize("name", ["A_internlm2", "B_qwen2"])
def test_three_steps_are_the_official_ones(recording, data, name: str):
    record = recording(name)
    expected = record.train["adamw_3_steps"]
    item = next(i for i in record.train["items"] if i["name"] == expected["sample"])["item"]
    model = load_model(record.checkpoint, dtype=torch.float32)
    processor = Processor.from_directory(
        record.checkpoint, model.config, pictures=PictureOptions(official=True)
    )
    options = RecordOptions(strip_turns=name == "A_internlm2", max_tiles=2)
    messages = from_opengvlab(item, data("official", "pictures"), options)
    prompt = processor.encode(messages, options=EncodeOptions(add_generation_prompt=False))
    freeze_parts(model, Freeze(vision=False))
    optimizer = build_optimizer(
        model,
        Optimizer(
            learning_rate=expected["lr"],
            betas=tuple(expected["betas"]),
            eps=expected["eps"],
            weight_decay=expected["weight_decay_all_params"],
        ),
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = expected["weight_decay_all_params"]
    audit = GradientAudit(model)
    for loss, norm in expected["loss_and_grad_norm"]:
        ours = mean_loss(model, prompt)
        ours.backward()
        audit.check(("vision", "projector", "decoder"))
        norms = gradient_norms(model)
        optimizer.step(scale=norms.clipping(expected["clip"]))
        optimizer.zero_grad()
        assert ours.item() == pytest.approx(loss, rel=2e-4)
        assert float(norms.total) == pytest.approx(norm, rel=1e-3)
    assert audit.is_done
