import json
import math
from dataclasses import replace

import pytest

from internvl2.checkpoint.config_files import read_config, write_config


def rewritten(config, directory, layout="opengvlab", **changes):
    """The configuration read back after keys of the decoder's section were changed."""
    write_config(config, directory, layout)
    path = directory / "config.json"
    values = json.loads(path.read_text())
    values["text_config" if layout == "hf" else "llm_config"].update(changes)
    path.write_text(json.dumps(values))
    return read_config(directory)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("phi3", {"sliding_window": 64}),
        ("llama", {"rope_scaling": {"rope_type": "default"}, "moe_config": None}),
        ("internlm2", {"attn_implementation": "flash_attention_2", "ep_size": 1}),
    ],
)
def test_inert_settings_are_accepted(tiny, tmp_path, kind, changes):
    assert rewritten(tiny(kind), tmp_path, **changes).decoder.kind == kind


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "sliding_window 8 is below max_position_embeddings 64",
        ),
        ("phi3", {"sliding_window": 63}, "attention with a sliding window is not supported"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear' is not"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn' is not"),
        ("internlm2", {"bias": True}, "bias True is not supported"),
        ("llama", {"attention_bias": True}, "attention_bias True is not supported"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ("llama", {"architectures": ["Qwen3MoeForCausalLM"]}, "a mixture of experts"),
        ("llama", {"architectures": ["GptOssForCausalLM"]}, "'GptOssForCausalLM' is not supported"),
        (
            "llama",
            {"num_attention_heads": 0},
            "num_attention_heads is 0; it must be",
        ),
        ("llama", {"num_hidden_layers": 0}, r"config\.json: DecoderConfig\.num_layers is 0"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta is nan; it must be finite"),
        ("qwen2", {"sliding_window": "8"}, "sliding_window is '8'; it must be a whole number"),
        ("phi3", {"original_max_position_embeddings": 0}, "it must be a whole number above 0"),
        ("llama", {"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number"),
    ],
)
def test_unsupported_settings_are_errors_that_name_them(tiny, tmp_path, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        rewritten(tiny(kind), tmp_path, **changes)


def test_long_rope_scale_is_computed_from_the_lengths(tiny, tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    scaling = {"type": "su", **factors}
    read = rewritten(
        tiny("phi3"), tmp_path, rope_scaling=scaling, original_max_position_embeddings=16
    )
    assert read.decoder.rotary.scale == math.sqrt(1 + math.log(4) / math.log(16))
    assert read.decoder.rotary.limit == 16


def test_rope_parameters_of_new_transformers_are_read(tiny, tmp_path):
    parameters = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 5e5}
    rotary = rewritten(tiny("llama"), tmp_path, "hf", rope_parameters=parameters).decoder.rotary
    assert (rotary.kind, rotary.factor, rotary.theta, rotary.limit) == ("dynamic", 3.0, 5e5, 64)


def test_written_hf_configuration_does_not_tie_embeddings(tiny, tmp_path):
    write_config(tiny("internlm2"), tmp_path, "hf")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["tie_word_embeddings"] is False
    assert values["text_config"]["model_type"] == "llama"


def test_hf_layout_cannot_hold_ps_version_v1(tiny, tmp_path):
    from dataclasses import replace

    with pytest.raises(ValueError, match="transformers knows only ps_version v2"):
        write_config(replace(tiny("qwen2"), ps_version="v1"), tmp_path, "hf")


def test_null_system_message_means_the_template_default(data):
    assert (
        read_config(data("official", "E_qwen25_internvl2_5", "checkpoint")).system_message is None
    )


def test_image_token_is_found_in_the_tokenizer_files(data):
    assert read_config(data("official", "A_internlm2", "checkpoint")).image_token_id == 913


def test_mixture_of_experts_recording_is_a_clear_error(data):
    with pytest.raises(ValueError, match=r"Qwen3MoeForCausalLM.*supported: InternLM2ForCausalLM"):
        read_config(data("official", "F2_qwen3_moe", "checkpoint"))


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ValueError, match="model of type 'qwen2_vl'; supported: internvl_chat"):
        read_config(tmp_path)


def test_directory_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        read_config(tmp_path)


def test_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["[]", "5", '{"a":' * 3000])
def test_config_that_is_no_object_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (holds|is damaged)"):
        read_config(tmp_path)


def test_null_key_value_heads_are_as_many_as_heads(tiny, tmp_path):
    decoder = rewritten(tiny("qwen2"), tmp_path, num_key_value_heads=None).decoder
    assert decoder.num_kv_heads == decoder.num_heads


@pytest.mark.parametrize("entry", [None, {"content": "<IMG_CONTEXT>"}, {"id": 1.5}])
def test_damaged_added_token_is_passed_over_or_named(entry, tiny, tmp_path):
    write_config(replace(tiny("qwen2"), image_token_id=None), tmp_path, "opengvlab")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [entry]}))
    if entry and "content" in entry:
        with pytest.raises(ValueError, match=r"the id of <IMG_CONTEXT> is None"):
            read_config(tmp_path)
    else:
        assert read_config(tmp_path).image_token_id is None
