"""Adapters in PEFT's format: what is written is what is meant, what does not fit is named."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvl2.checkpoint.convert import convert
from internvl2.checkpoint.hub import locate
from internvl2.checkpoint.lora_writing import Base, Parts, write_adapter
from internvl2.checkpoint.source import open_checkpoint
from internvl2.checkpoint.store import load_model, save
from internvl2.family import find
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.lora import LoraSettings, add_lora, is_adapter, plain_name
from internvl2.model.rotary import Positions

KINDS = ["qwen2", "internlm2", "llama", "phi3", "qwen3"]


def logits(model: InternVL) -> Tensor:
    size, visual = model.config.tile_size, model.config.tokens_per_tile
    tile = torch.arange(size * size * 3, dtype=torch.uint8).reshape(1, size, size, 3)
    tokens = torch.tensor([5, 9, *[model.config.image_token_id] * visual, 7, 61])
    attend, positions = PackedAttention.of([len(tokens)]), Positions.packed([len(tokens)])
    with torch.no_grad():
        return model.logits(model(tokens, positions, tile, attend))


@dataclass(frozen=True)
class Trained:
    """A base's directory, its adapter's directory, and the model that they mean."""

    base: Path
    adapter: Path
    model: InternVL


@pytest.fixture
def trained(tiny: Any, tmp_path: Path) -> Any:
    """`trained("qwen2")`: adapters of both parts, and a projector that was trained as a whole."""

    def make(kind: str, *, dora: bool = False, rslora: bool = False, seed: int = 0) -> Trained:
        config = tiny(kind, large_vision=kind == "llama")
        model = random_model(config)
        base, adapter = tmp_path / f"base-{kind}", tmp_path / f"adapter-{kind}"
        if not base.exists():
            save(model, None, base, "opengvlab")
        decoder = LoraSettings(4, 8.0, 0.05, dora, rslora)
        parts = Parts(decoder, LoraSettings(3, 5.0, 0.05, dora, rslora))
        learn(model, parts, seed)
        write(model, parts, base, adapter)
        return Trained(base, adapter, model.eval())

    return make


def write(model: InternVL, parts: Parts, base: Path, adapter: Path) -> None:
    """What is trained in a model, as an adapter of the checkpoint `base`."""
    config = model.config
    trained = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    stamp = open_checkpoint(base, config).fingerprint(config)
    write_adapter(trained, config, parts, Base(str(base), stamp), adapter)


def learn(model: InternVL, parts: Parts, seed: int) -> None:
    """Adapters, and noise for all that would be trained."""
    add_lora(model, parts.decoder, parts.vision)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name) or name.startswith("projector."):
                parameter += torch.randn(parameter.shape, generator=noise) * 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dora", "rslora"), [(False, False), (True, True)])
def test_a_written_adapter_and_its_base_give_the_logits_of_the_trained_model(
    kind, dora, rslora, trained
):
    made = trained(kind, dora=dora, rslora=rslora)
    wanted = logits(made.model)
    found = logits(load_model(made.base, adapter=made.adapter))
    assert (logits(load_model(made.base)) - wanted).abs().max() > 0.1
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["opengvlab", "hf", "paddlemix"])
def test_merged_weights_in_any_layout_give_the_logits_of_adapter_and_base(
    layout, trained, tmp_path
):
    made = trained("internlm2")
    convert(made.adapter, tmp_path / "merged", layout)
    found = logits(load_model(tmp_path / "merged"))
    assert (found - logits(made.model)).abs().max() < 1e-4


def test_an_adapter_fits_its_base_in_every_layout_and_number_format(trained, tmp_path):
    made = trained("internlm2")
    convert(made.base, tmp_path / "bf16", "opengvlab", "bfloat16")
    config = made.model.config
    stamp = open_checkpoint(made.base, config).fingerprint(config)
    copies = (("hf", "bfloat16"), ("paddlemix", "float16"), ("hf", "float32"))
    for layout, dtype in copies:  # of bfloat16, which both others hold exactly
        convert(tmp_path / "bf16", tmp_path / f"{layout}-{dtype}", layout, dtype)
        copy = open_checkpoint(tmp_path / f"{layout}-{dtype}", config)
        assert copy.fingerprint(config) == stamp


def test_a_wrong_base_is_refused_by_name(trained, tiny, tmp_path):
    made = trained("qwen2")
    save(random_model(tiny("qwen2"), seed=1), None, tmp_path / "other", "hf")
    names = f"{made.adapter} was trained on {made.base}; the weights of {tmp_path / 'other'} are"
    with pytest.raises(ValueError, match=re.escape(names)):
        load_model(tmp_path / "other", adapter=made.adapter)


def test_a_base_that_was_tuned_in_its_attention_alone_is_another(trained, tiny, tmp_path):
    made, other = trained("qwen2"), random_model(tiny("qwen2"))
    with torch.no_grad():
        other.decoder.layers[0].get_parameter("attention.v.weight").mul_(1.1)
    save(other, None, tmp_path / "other", "opengvlab")
    with pytest.raises(ValueError, match=r"the weights of .*other are others"):
        load_model(tmp_path / "other", adapter=made.adapter)


def test_a_base_of_other_shapes_is_refused_by_name(trained, tiny, tmp_path):
    made = trained("qwen2")
    save(random_model(tiny("phi3")), None, tmp_path / "other", "hf")
    with pytest.raises(ValueError, match=r"trained on .*base-qwen2; the weights of .*other are"):
        load_model(tmp_path / "other", adapter=made.adapter)
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    save_file(tensors, made.adapter / "adapter_model.safetensors")  # as by another program
    with pytest.raises(
        ValueError, match=r"base-qwen2 and does not fit .*other: there is no place for .*k_proj"
    ):
        load_model(tmp_path / "other", adapter=made.adapter)


def test_merging_in_fp32_loses_nothing_of_a_bf16_base(trained, tmp_path):
    made = trained("qwen2")
    convert(made.base, tmp_path / "bf16", "opengvlab", "bfloat16")
    found = load_model(tmp_path / "bf16", adapter=made.adapter, dtype=torch.float32)
    name = "decoder.layers.1.mlp.down"
    base = load_model(tmp_path / "bf16").get_parameter(f"{name}.weight").float()
    module = made.model.get_submodule(name)
    wanted = base + 2 * module.up @ module.down
    assert torch.allclose(found.get_parameter(f"{name}.weight"), wanted, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_on_the_gpu_as_on_the_cpu(kind, trained):
    made = trained(kind, dora=True)
    wanted = load_model(made.base, adapter=made.adapter).state_dict()
    for name, tensor in (
        load_model(made.base, adapter=made.adapter, device="cuda").state_dict().items()
    ):
        assert torch.allclose(tensor.cpu(), wanted[name], atol=1e-4), name


def test_an_adapters_directory_brings_its_base(trained):
    made = trained("qwen2")
    assert locate(made.adapter) == locate(made.base, made.adapter)
    with pytest.raises(ValueError, match="one model takes one adapter"):
        locate(made.adapter, made.adapter)


def change(adapter: Path, **values: object) -> None:
    """Other values in adapter_config.json."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_base_that_is_gone_is_named_with_what_to_do(trained):
    made = trained("qwen2")
    change(made.adapter, base_model_name_or_path="/gone/model")
    with pytest.raises(ValueError, match=r"adapter of /gone/model.*give the model.*--adapter"):
        locate(made.adapter)
    change(made.adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not say of which model; give the model"):
        locate(made.adapter)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices \[1\] is not supported"),
        ({"r": 5}, r"is \[4, \d+\]; rank 5 for the model's .* needs \[5, \d+\]"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
        ({"rank_pattern": {"(": 3}}, r"'\(' is no pattern"),
        ({"modules_to_save": "lm_head"}, "must be a list of names"),
    ],
)
def test_what_adapter_config_asks_for_and_we_do_not_compute_is_an_error(values, message, trained):
    made = trained("qwen2")
    change(made.adapter, **values)
    with pytest.raises(ValueError, match=message):
        load_model(made.base, adapter=made.adapter)


def test_a_key_of_a_later_peft_is_passed_over_with_a_warning(trained, caplog):
    made = trained("qwen2")
    change(made.adapter, use_later=True, later=None, megatron_core="megatron.core")
    load_model(made.base, adapter=made.adapter)
    assert [record.getMessage() for record in caplog.records] == [
        f"the adapter {made.adapter} has the key 'use_later', which is passed over"
    ]


def test_a_base_that_only_shapes_can_tell_is_warned_of(trained, tmp_path, caplog):
    made = trained("qwen2")
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    save_file(tensors, made.adapter / "adapter_model.safetensors")  # as by another program
    load_model(made.base, adapter=made.adapter)
    assert not caplog.records
    convert(made.base, tmp_path / "copy", "hf")
    caplog.clear()
    load_model(tmp_path / "copy", adapter=made.adapter)
    ((message),) = [record.getMessage() for record in caplog.records]
    assert message.endswith(
        f"trained on {made.base}; whether {tmp_path / 'copy'} is that model, only shapes can tell"
    )


def test_an_adapted_head_may_bring_the_matrix_below_it(trained):
    """As PEFT stores it, because a head may be the embedding."""
    made = trained("qwen2")
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    base = load_model(made.base).get_parameter("decoder.head.weight").detach()
    down, up = torch.randn(4, base.shape[1]), torch.randn(base.shape[0], 4)
    stem = "base_model.model.lm_head"
    tensors |= {f"{stem}.base_layer.weight": base, f"{stem}.lora_A.weight": down}
    save_file(tensors | {f"{stem}.lora_B.weight": up}, made.adapter / "adapter_model.safetensors")
    head = load_model(made.base, adapter=made.adapter).get_parameter("decoder.head.weight")
    assert torch.allclose(head, base + 2 * up @ down, atol=1e-5)


STEM = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        (f"{STEM}.lora_A.weight", {}, r"adapter of .*q_proj.lora_B.weight lacks lora_A"),
        (
            None,
            {f"{STEM}.lora_C.weight": (4, 4)},
            "there is no place for .*lora_C",
        ),
        (None, {f"{STEM}.lora_A.mine.weight": (4, 4)}, "are for one place"),
        (
            None,
            {"base_model.model.lm_head.weight": (70, 8)},
            r"\[70, 8\]; the model has \[70, 32\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(removed, added, message, trained):
    made = trained("qwen2")
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    tensors |= {name: torch.zeros(shape) for name, shape in added.items()}
    tensors.pop(removed, None)
    save_file(tensors, made.adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(made.base, adapter=made.adapter)


DECODER = [f"model.layers.1.{name}" for name in ("attention.wqkv", "feed_forward.w2")]
VISION = [f"encoder.layers.1.{name}" for name in ("attn.qkv", "mlp.fc1")]


@pytest.mark.parametrize(
    ("part", "places"), [("language_model", DECODER), ("vision_model", VISION)]
)
@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("base_model.model.{part}.", ""),
        ("{part}.base_model.model.", ".default"),
        ("base_model.model.", ""),
    ],
)
def test_adapters_of_the_released_names_are_read_fused_ones_too(
    part, places, prefix, name, tiny, tmp_path
):
    save(random_model(tiny("internlm2")), None, tmp_path / "base", "opengvlab")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    prefix, tensors = prefix.format(part=part), {}
    for place in places:
        matrix = weights[f"{part}.{place}.weight"]
        down, up = torch.randn(3, matrix.shape[1]), torch.randn(matrix.shape[0], 3)
        weights[f"{part}.{place}.weight"] = matrix + 7 / 3 * up @ down
        tensors[f"{prefix}{place}.lora_A{name}.weight"] = down
        tensors[f"{prefix}{place}.lora_B{name}.weight"] = up
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": ["wqkv", "w2"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    found = load_model(tmp_path / "base", adapter=tmp_path / "adapter").state_dict()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    for key, tensor in load_model(tmp_path / "base").state_dict().items():
        assert torch.allclose(found[key], tensor, atol=1e-5), key


def test_what_was_trained_in_part_only_cannot_be_written(tiny, tmp_path):
    config = tiny("qwen2")
    model = random_model(config)
    parts = Parts(LoraSettings(2, 4.0))
    add_lora(model, parts.decoder)
    named = {plain_name(n): p for n, p in model.named_parameters() if is_adapter(n)}
    named["vision.layers.0.scale1"] = model.vision.layers[0].scale1
    with pytest.raises(ValueError, match=r"PEFT replaces whole modules; .*\.0\.lambda_1"):
        write_adapter(named, config, parts, Base("x", "y"), tmp_path / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["opengvlab", "hf"])
def test_a_merged_model_of_the_2b_shape_gives_the_logits_of_adapter_and_base(layout, tmp_path):
    """The widths of InternVL2-2B; of its layers four, of its vocabulary a part."""
    released = find("internvl2-2b").config
    config = replace(
        released,
        vision=replace(released.vision, num_layers=2),
        decoder=replace(released.decoder, num_layers=2, vocab_size=4000),
        tile_size=56,
        image_token_id=66,
        dtype="float32",
    )
    model = random_model(config)
    save(model, None, tmp_path / "base", "opengvlab")
    parts = Parts(LoraSettings(16, 32.0), LoraSettings(8, 16.0))
    learn(model, parts, 0)
    write(model, parts, tmp_path / "base", tmp_path / "adapter")
    convert(tmp_path / "base", tmp_path / "merged", layout, adapter=tmp_path / "adapter")
    wanted = logits(model.eval())
    error = (logits(load_model(tmp_path / "merged")) - wanted).abs().max()
    assert error < 1e-4 * wanted.abs().max()
