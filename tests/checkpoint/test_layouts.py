import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl2.checkpoint.config_files import LAYOUTS, read_config, write_config
from internvl2.checkpoint.layouts import canonical_name, rules
from internvl2.checkpoint.source import parameter_shapes
from internvl2.checkpoint.storage import ByKeyValueHead, Joined, Split, Transposed
from internvl2.checkpoint.store import load_model, save
from internvl2.model.internvl import random_model

KINDS = ["internlm2", "qwen2", "qwen3", "llama", "phi3"]


@pytest.mark.parametrize("large_vision", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_loading_what_was_saved_is_identity(tiny, kind, layout, large_vision, tmp_path):
    model = random_model(tiny(kind, large_vision=large_vision))
    save(model, None, tmp_path / "saved", layout, max_shard_bytes=20_000)
    loaded = load_model(tmp_path / "saved")
    assert loaded.config == model.config
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_one_rule(tiny, kind, layout):
    config = tiny(kind)
    shapes = parameter_shapes(config)
    table = rules(layout, config, shapes)
    assert sorted(name for rule in table for name in rule.ours) == sorted(shapes)
    stored = [name for rule in table for name in rule.theirs]
    assert len(stored) == len(set(stored))
    assert [canonical_name(name, layout, config) for name in stored] == stored


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_configuration_survives_every_layout(tiny, kind, layout, tmp_path):
    write_config(tiny(kind), tmp_path, layout)
    assert read_config(tmp_path) == tiny(kind)


@settings(max_examples=40, deadline=None)
@given(
    kv_heads=st.integers(1, 4),
    queries=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    hidden=st.integers(1, 5),
)
def test_interleaved_heads_read_back_as_written(kv_heads, queries, head_dim, hidden):
    storage = ByKeyValueHead(kv_heads, queries)
    rows = (kv_heads * queries * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    ours = [torch.randn(n, hidden) for n in rows]
    back = storage.read(storage.write(ours))
    assert all(torch.equal(a, b) for a, b in zip(ours, back, strict=True))


def test_internlm2_keeps_queries_key_and_value_of_a_group_together():
    heads = torch.arange(8.0)[:, None].expand(8, 3)
    q, k, v = ByKeyValueHead(2, 2).read([heads])
    assert q[:, 0].tolist() == [0, 1, 4, 5]
    assert k[:, 0].tolist() == [2, 6]
    assert v[:, 0].tolist() == [3, 7]


def test_joined_and_split_are_each_others_inverse():
    parts = [torch.randn(n, 3) for n in (4, 2, 2)]
    whole = Joined((4, 2, 2)).write(parts)
    assert all(torch.equal(a, b) for a, b in zip(Split((4, 2, 2)).write(whole), parts, strict=True))


def test_paddle_stores_the_transposed_of_what_it_joins():
    parts = [torch.randn(4, 3), torch.randn(2, 3)]
    stored = Transposed(Joined((4, 2))).write(parts)
    assert torch.equal(stored[0], torch.cat(parts).T)


@pytest.mark.parametrize(
    ("name", "layout", "canonical"),
    [
        ("vision_tower.embeddings.cls_token", "hf", "model.vision_tower.embeddings.cls_token"),
        ("language_model.model.norm.weight", "hf", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "hf", "lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "hf", "model.multi_modal_projector.linear_1.bias"),
        ("language_model.model.norm.weight", "paddlemix", "language_model.qwen2.norm.weight"),
    ],
)
def test_other_spellings_of_names_are_known(name, layout, canonical, tiny):
    assert canonical_name(name, layout, tiny("qwen2")) == canonical


@pytest.mark.parametrize("kind", ["internlm2", "qwen2", "qwen3", "llama", "phi3"])
def test_paddle_layout_is_written_under_the_prefixes_that_paddle_reads(kind, tiny):
    config = tiny(kind)
    prefix = kind if kind in ("qwen2", "llama") else "model"
    stored = [
        name
        for rule in rules("paddlemix", config, parameter_shapes(config))
        for name in rule.theirs
        if name.startswith("language_model.") and name.count(".") > 2
    ]
    assert {name.split(".")[1] for name in stored} == {prefix}
