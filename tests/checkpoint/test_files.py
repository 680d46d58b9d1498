import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from internvl2.checkpoint.config_files import write_config
from internvl2.checkpoint.files import open_weights
from internvl2.checkpoint.source import open_checkpoint
from internvl2.checkpoint.store import load_model, save
from internvl2.model.internvl import random_model


@pytest.fixture
def saved(tiny, tmp_path):
    """Saves a tiny member in a layout, in shards of 20 kB, and gives its directory."""

    def make(layout="opengvlab", kind="qwen2", shard=20_000, dtype=torch.float32):
        save(random_model(tiny(kind), dtype=dtype), None, tmp_path / layout, layout, shard)
        return tmp_path / layout

    return make


def tensors_of(directory):
    source = open_weights(directory)
    return {name: source.read(name).clone() for name in source.stored}


def as_numpy(tensor):
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


def replace_weights(directory, write):
    """Take the weight files out of a directory and have others written from their tensors."""
    tensors = tensors_of(directory)
    for path in [*directory.glob("model*"), *directory.glob("*.bin")]:
        path.unlink()
    write(tensors)


def assert_same(directory, tiny, kind="qwen2", dtype=torch.float32):
    wanted = random_model(tiny(kind), dtype=dtype).state_dict()
    for name, tensor in load_model(directory).state_dict().items():
        assert tensor.dtype is dtype
        assert torch.equal(tensor, wanted[name]), name


def test_torch_file_loads(saved, tiny):
    directory = saved()
    path = directory / "pytorch_model.bin"
    replace_weights(directory, lambda tensors: torch.save(tensors, path))
    assert_same(directory, tiny)


def test_torch_shards_load(saved, tiny):
    directory = saved()

    def write(tensors):
        names = sorted(tensors)
        halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for file, part in halves.items():
            torch.save({name: tensors[name] for name in part}, directory / file)
        listed = {name: file for file, part in halves.items() for name in part}
        index = directory / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": listed}))

    replace_weights(directory, write)
    assert_same(directory, tiny)


def test_torch_file_with_code_is_refused(saved):
    directory = saved()
    hostile = {"x": pytest.raises}
    replace_weights(directory, lambda _: torch.save(hostile, directory / "pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or holds more than"):
        open_weights(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "internlm2"])
def test_paddle_safetensors_load_under_either_prefix(saved, tiny, kind, dtype):
    directory = saved("paddlemix", kind, dtype=dtype)

    def write(tensors):
        renamed = {
            name.replace(f"language_model.{kind}.", "language_model.model."): np.ascontiguousarray(
                as_numpy(tensor)
            )
            for name, tensor in tensors.items()
        }
        save_numpy(renamed, directory / "model.safetensors", metadata={"format": "np"})

    replace_weights(directory, write)
    assert_same(directory, tiny, kind, dtype)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickled_numpy_arrays_load_in_every_protocol(saved, tiny, protocol):
    directory = saved("paddlemix")

    def write(tensors):
        arrays = {name: as_numpy(tensor) for name, tensor in tensors.items()}
        content = arrays | {"StructuredToParameterName@@": {name: name for name in arrays}}
        with (directory / "model_state.pdparams").open("wb") as file:
            pickle.dump(content, file, protocol=protocol)

    replace_weights(directory, write)
    assert_same(directory, tiny)


def test_arrays_by_columns_and_in_slices_load(saved, tiny):
    directory = saved("paddlemix")
    name = "language_model.lm_head.weight"

    def write(tensors):
        content = {key: np.asfortranarray(as_numpy(tensor)) for key, tensor in tensors.items()}
        whole = np.ascontiguousarray(content.pop(name))
        parts = np.array_split(whole.flatten(), 3)
        slices = [f"{name}@@.{i}" for i in range(3)]
        content |= dict(zip(slices, parts, strict=True))
        content["UnpackBigParamInfor@@"] = {name: {"OriginShape": whole.shape, "slices": slices}}
        with (directory / "model_state.pdparams").open("wb") as file:
            pickle.dump(content, file, protocol=4)

    replace_weights(directory, write)
    assert_same(directory, tiny)


@pytest.mark.parametrize(
    "table",
    [
        5,
        {"x": {}},
        {"x": {"slices": ["absent"], "OriginShape": [1]}},
        {"x": {"slices": [], "OriginShape": [0]}},
        {"x": {"slices": ["whole"], "OriginShape": [7]}},
    ],
)
def test_wrong_table_of_slices_is_one_clear_error(table, tmp_path):
    content = {"whole": np.zeros(3, np.float32), "UnpackBigParamInfor@@": table}
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(ValueError, match=r"pdparams is damaged: its table of slices is wrong"):
        open_weights(tmp_path)


@pytest.mark.parametrize("content", [b"I\xff\n.", b"\x80\xce.", b"0.", b"K\x01\x85R."])
@pytest.mark.parametrize("name", ["model_state.pdparams", "pytorch_model.bin"])
def test_nonsense_instead_of_a_pickle_is_one_clear_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged or"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.zeros(2, dtype=torch.int32)}, "x is int32, strided; it must be dense"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "x is complex64, strided"),
        ({"x": torch.zeros(2).to_sparse()}, "x is float32, sparse_coo"),
        ({5: torch.zeros(2)}, "a tensor is named 5; it must be a string"),
    ],
)
def test_torch_file_with_tensors_that_are_no_weights_is_refused(tensors, message, tmp_path):
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        open_weights(tmp_path)


class Hostile:
    def __reduce__(self):
        return print, ("this ran",)


def test_pdparams_with_code_is_refused_and_never_runs(tmp_path, capsys):
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps({"x": Hostile()}, protocol=4))
    with pytest.raises(ValueError, match=r"names builtins\.print; only numpy arrays are read"):
        open_weights(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [3, "text", [np.zeros(2)], np.array(["text"]), np.array([None])])
def test_pdparams_with_other_content_is_refused(tmp_path, value):
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps({"x": value}, protocol=4))
    with pytest.raises(ValueError, match=r"model_state\.pdparams"):
        open_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 500, 20_000])
@pytest.mark.parametrize("layout", ["opengvlab", "paddlemix"])
def test_truncated_file_is_one_clear_error(saved, layout, keep):
    directory = saved(layout, shard=10**9)
    path = next(directory.glob("model*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path.name}.* is damaged or incomplete"):
        load_model(directory)


def test_truncated_torch_file_is_one_clear_error(saved):
    directory = saved()
    path = directory / "pytorch_model.bin"
    replace_weights(directory, lambda tensors: torch.save(tensors, path))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        load_model(directory)


def test_missing_shard_is_named(saved):
    directory = saved()
    shard = sorted(directory.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name} is missing; model\.safetensors"):
        load_model(directory)


def test_index_that_does_not_fit_its_shards_is_named(saved):
    directory = saved()
    first, second = sorted(directory.glob("model-*"))[:2]
    shutil.copyfile(first, second)
    with pytest.raises(ValueError, match=f"is in {second.name}, which does not hold it"):
        load_model(directory)


def test_index_cannot_name_files_elsewhere(saved):
    directory = saved()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="which is not a file beside it"):
        load_model(directory)


def test_directory_without_weights_is_named(tiny, tmp_path):
    write_config(tiny("qwen2"), tmp_path, "opengvlab")
    with pytest.raises(FileNotFoundError, match=r"holds no weights; looked for model\.safetensors"):
        load_model(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_all_named(saved):
    directory = saved(shard=10**9)

    def write(tensors):
        tensors = {name: as_numpy(tensor) for name, tensor in tensors.items()}
        del tensors["mlp1.0.bias"]
        tensors["mlp1.7.bias"] = np.zeros(3, np.float32)
        tensors["mlp1.1.bias"] = np.zeros(5, np.float32)
        save_numpy(tensors, directory / "model.safetensors")

    replace_weights(directory, write)
    wanted = (
        r"missing: mlp1\.0\.bias \[128\]; extra: mlp1\.7\.bias \[3\]; "
        r"misshapen: mlp1\.1\.bias is \[5\] instead of \[32\]"
    )
    with pytest.raises(ValueError, match=wanted):
        load_model(directory)


def test_a_parameter_under_two_names_is_an_error(saved):
    directory = saved("hf", shard=10**9)

    def write(tensors):
        again = {"language_model.lm_head.weight": torch.zeros_like(tensors["lm_head.weight"])}
        save_file(tensors | again, directory / "model.safetensors")

    replace_weights(directory, write)
    with pytest.raises(ValueError, match=r"same parameter twice: .*lm_head\.weight and"):
        load_model(directory)


def test_rotary_tables_of_old_releases_are_passed_over(saved, tiny):
    directory = saved(shard=10**9)

    def write(tensors):
        arrays = {name: as_numpy(tensor) for name, tensor in tensors.items()}
        arrays["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4)
        save_numpy(arrays, directory / "model.safetensors")

    replace_weights(directory, write)
    assert_same(directory, tiny)


def test_tied_head_is_read_from_the_embedding(saved):
    directory = saved("hf", shard=10**9)

    def write(tensors):
        arrays = {name: as_numpy(tensor) for name, tensor in tensors.items()}
        del arrays["lm_head.weight"]
        save_numpy(arrays, directory / "model.safetensors")

    replace_weights(directory, write)
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        load_model(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    decoder = load_model(directory).decoder
    assert torch.equal(decoder.head.weight, decoder.embedding.weight)
    assert decoder.head.weight is not decoder.embedding.weight


def test_older_hf_names_load(saved, tiny):
    directory = saved("hf", shard=10**9)

    def older(name):
        if name.startswith("lm_head."):
            return f"language_model.{name}"
        name = name.removeprefix("model.")
        return name.replace("language_model.", "language_model.model.", 1)

    def write(tensors):
        arrays = {older(name): as_numpy(tensor) for name, tensor in tensors.items()}
        save_numpy(arrays, directory / "model.safetensors")

    replace_weights(directory, write)
    assert_same(directory, tiny)


def test_safetensors_of_other_types_are_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    known = "F64, F32, F16, BF16, U16, I32"
    with pytest.raises(ValueError, match=f"x has type I64; supported: {known}"):
        open_weights(tmp_path)


def test_lora_of_vision_and_decoder_is_merged(saved, tiny):
    directory = saved(shard=10**9)
    before = random_model(tiny("qwen2")).state_dict()
    down, up = torch.randn(3, 32), torch.randn(96, 3)

    def write(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            for part in ("vision_model", "language_model"):
                name = name.replace(f"{part}.", f"{part}.base_model.model.", 1)
            renamed[name] = as_numpy(tensor)
        stem = "vision_model.base_model.model.encoder.layers.0.attn.qkv"
        for part in ("weight", "bias"):
            renamed[f"{stem}.base_layer.{part}"] = renamed.pop(f"{stem}.{part}")
        renamed[f"{stem}.lora_A.default.weight"] = down.numpy()
        renamed[f"{stem}.lora_B.default.weight"] = up.numpy()
        save_numpy(renamed, directory / "model.safetensors")

    replace_weights(directory, write)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"use_backbone_lora": 3}))
    merged = load_model(directory).state_dict()
    name = "vision.layers.0.attention.qkv.weight"
    assert torch.allclose(merged.pop(name), before.pop(name) + 2 * up @ down, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged.items())
    (directory / "config.json").write_text(json.dumps(config | {"use_backbone_lora": 4}))
    with pytest.raises(ValueError, match=r"config\.json gives rank 4"):
        load_model(directory)


WRAPPED = "language_model.base_model.model.model.layers.0.self_attn.o_proj"


@pytest.fixture
def adapted(saved):
    """`adapted({"lora_A.weight": tensor})`: a checkpoint with an adapter on one matrix."""

    def make(additions):
        directory = saved(shard=10**9)

        def write(tensors):
            wrapped = {
                name.replace("language_model.", "language_model.base_model.model.", 1): tensor
                for name, tensor in tensors.items()
            }
            added = {f"{WRAPPED}.{name}": tensor for name, tensor in additions.items()}
            save_file(wrapped | added, directory / "model.safetensors")

        replace_weights(directory, write)
        return directory

    return make


@pytest.mark.parametrize("adapter", [".default", "", ".mine"])
def test_adapters_of_any_name_are_merged(adapter, adapted, tiny):
    down, up = torch.randn(3, 32), torch.randn(32, 3)
    directory = adapted({f"lora_A{adapter}.weight": down, f"lora_B{adapter}.weight": up})
    name = "decoder.layers.0.attention.o.weight"
    before = random_model(tiny("qwen2")).state_dict()[name]
    assert torch.allclose(load_model(directory).state_dict()[name], before + 2 * up @ down)


@pytest.mark.parametrize(("down", "up"), [((3, 5), (32, 3)), ((3, 32), (5, 3)), ((3,), (32, 3))])
def test_misshapen_adapter_is_named(down, up, adapted):
    directory = adapted({"lora_A.weight": torch.ones(down), "lora_B.weight": torch.ones(up)})
    with pytest.raises(ValueError, match=r"the adapter of .*o_proj\.weight \[32, 32\] is \["):
        load_model(directory)


@pytest.mark.parametrize("again", ["base_layer.weight", "lora_B.other.weight"])
def test_two_tensors_for_one_place_of_an_adapter_are_named(again, adapted):
    factors = {"lora_A.default.weight": (3, 32), "lora_B.default.weight": (32, 3), again: (32, 3)}
    directory = adapted({name: torch.ones(shape) for name, shape in factors.items()})
    with pytest.raises(ValueError, match="are for one place"):
        load_model(directory)


def test_paddle_layout_is_told_by_one_matrix(saved, tiny):
    for layout in ("opengvlab", "hf", "paddlemix"):
        assert open_checkpoint(saved(layout), tiny("qwen2")).layout == layout
