"""config.json in the forms that checkpoints carry, read into an InternVLConfig and written back.

Three programs write them: OpenGVLab (`llm_config` and `vision_config`), PaddleMIX (the same, with
`dtype` for `torch_dtype`) and transformers (`text_config`, other names in `vision_config`). What a
file says always wins over the family table; what it asks for and we do not compute is an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from internvl2.checkpoint.decoder_fields import (
    ARCHITECTURES,
    read_decoder,
    write_decoder,
)
from internvl2.checkpoint.fields import Section, read_json, write_json
from internvl2.config import DecoderKind, DTypeName, InternVLConfig, VisionConfig

Layout = Literal["opengvlab", "hf", "paddlemix"]
LAYOUTS: tuple[Layout, ...] = ("opengvlab", "hf", "paddlemix")
IMAGE_TOKEN = "<IMG_CONTEXT>"


def read_config(directory: str | Path) -> InternVLConfig:
    """The model that the config.json in `directory` describes."""
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no config.json; it is not a checkpoint")
    section = read_json(path)
    try:
        return _described(section, directory)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None


def _described(section: Section, directory: Path) -> InternVLConfig:
    if is_hf(section):
        return _read_hf(section, directory)
    if section.values.get("model_type") == "internvl_chat" or "llm_config" in section.values:
        return _read_opengvlab(section, directory)
    raise ValueError(
        f"{section.place} describes a model of type {section.values.get('model_type')!r}; "
        "supported: internvl_chat (OpenGVLab, PaddleMIX) and internvl (transformers)"
    )


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokens that other programs look for in the language model's section."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def write_config(
    config: InternVLConfig,
    directory: str | Path,
    layout: Layout,
    token_ids: TokenIds | None = None,
) -> None:
    """Write the config.json that describes `config` in a layout."""
    ids = token_ids or TokenIds()
    if layout == "hf":
        values, language = _hf_values(config), "text_config"
    else:
        key = "dtype" if layout == "paddlemix" else "torch_dtype"
        values, language = _opengvlab_values(config, key), "llm_config"
    values[language] |= {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}
    write_json(Path(directory) / "config.json", values)


def require_expressible(config: InternVLConfig, layout: Layout) -> None:
    """Raise where a layout has no words for a model, before anything of it is written."""
    if layout == "hf" and config.ps_version != "v2":
        raise ValueError("transformers knows only ps_version v2; this model has v1")


def is_hf(section: Section) -> bool:
    """Whether a config.json is transformers' own form."""
    return section.values.get("model_type") == "internvl" or "text_config" in section.values


def read_lora_ranks(directory: str | Path) -> tuple[int, int]:
    """Ranks of un-merged adapters on the vision tower and the decoder; 0 where there are none."""
    section = read_json(Path(directory) / "config.json")
    return section.integer("use_backbone_lora", 0), section.integer("use_llm_lora", 0)


def _read_opengvlab(section: Section, directory: Path) -> InternVLConfig:
    vision = section.section("vision_config")
    language = section.section("llm_config")
    tower = _read_vision(vision)
    return InternVLConfig(
        vision=tower,
        decoder=read_decoder(language),
        template=section.text("template"),
        tile_size=section.integer("force_image_size", tower.image_size),
        downsample_ratio=section.number("downsample_ratio", 0.5),
        select_layer=section.integer("select_layer", -1),
        ps_version=_ps_version(section, "v1"),
        dynamic_tiles=section.flag("dynamic_image_size", False),
        min_tiles=section.integer("min_dynamic_patch", 1),
        max_tiles=section.integer("max_dynamic_patch", 6),
        use_thumbnail=section.flag("use_thumbnail", False),
        pad2square=section.flag("pad2square", False),
        system_message=_optional_text(section, "system_message"),
        image_token_id=_image_token_id(section, directory),
        dtype=_dtype(section, language, vision),
    )


def _read_vision(section: Section) -> VisionConfig:
    """`vision_config` with the defaults of `configuration_intern_vit.py`."""
    section.require("hidden_act", "gelu", default="gelu")
    section.require("num_channels", 3, default=3)
    section.require("norm_type", "layer_norm", "rms_norm", default="rms_norm")
    section.require("use_moe", False, None)
    return VisionConfig(
        hidden_size=section.integer("hidden_size", 3200),
        num_layers=section.integer("num_hidden_layers", 48),
        num_heads=section.integer("num_attention_heads", 25),
        intermediate_size=section.integer("intermediate_size", 12800),
        image_size=section.side("image_size", 224),
        patch_size=section.side("patch_size", 14),
        norm="layer_norm" if section.values.get("norm_type") == "layer_norm" else "rms_norm",
        norm_eps=section.number("layer_norm_eps", 1e-6),
        qkv_bias=section.flag("qkv_bias", False),
        qk_norm=section.flag("qk_normalization", True),
        drop_path_rate=section.number("drop_path_rate", 0.0),
    )


def _opengvlab_values(config: InternVLConfig, dtype_key: str) -> dict[str, Any]:
    vision = config.vision
    values: dict[str, Any] = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": config.dynamic_tiles,
        "force_image_size": config.tile_size,
        "hidden_size": config.decoder.hidden_size,
        "llm_config": write_decoder(config.decoder, config.decoder.kind)
        | {dtype_key: config.dtype},
        "max_dynamic_patch": config.max_tiles,
        "min_dynamic_patch": config.min_tiles,
        "pad2square": config.pad2square,
        "ps_version": config.ps_version,
        "select_layer": config.select_layer,
        "template": config.template,
        "tie_word_embeddings": False,
        dtype_key: config.dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": config.use_thumbnail,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "hidden_act": "gelu",
            "norm_type": vision.norm,
            "layer_norm_eps": vision.norm_eps,
            "qkv_bias": vision.qkv_bias,
            "qk_normalization": vision.qk_norm,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "drop_path_rate": vision.drop_path_rate,
            dtype_key: config.dtype,
        },
    }
    if config.system_message is not None:
        values["system_message"] = config.system_message
    if config.image_token_id is not None:
        values["image_token_id"] = config.image_token_id
    return values


def _read_hf(section: Section, directory: Path) -> InternVLConfig:
    """transformers' form, and the keys of the official form that we add to it."""
    vision, language = section.section("vision_config"), section.section("text_config")
    tower = _read_hf_vision(vision)
    section.require("projector_hidden_act", "gelu", default="gelu")
    section.require("vision_feature_select_strategy", "default", default="default")
    return InternVLConfig(
        vision=tower,
        decoder=read_decoder(_named_language_model(section, language)),
        template=section.text("template", "internvl2_5"),
        tile_size=section.integer("force_image_size", tower.image_size),
        downsample_ratio=section.number("downsample_ratio", 0.5),
        select_layer=section.integer("vision_feature_layer", -1),
        ps_version=_ps_version(section, "v2"),
        dynamic_tiles=section.flag("dynamic_image_size", True),
        min_tiles=section.integer("min_dynamic_patch", 1),
        max_tiles=section.integer("max_dynamic_patch", 12),
        use_thumbnail=section.flag("use_thumbnail", True),
        pad2square=section.flag("pad2square", False),
        system_message=_optional_text(section, "system_message"),
        image_token_id=_image_token_id(section, directory),
        dtype=_dtype(section, language, vision),
    )


def _named_language_model(section: Section, language: Section) -> Section:
    """`text_config`, with InternLM2's own name back where we had written it as a Llama."""
    origin = section.values.get("llm_architecture")
    if origin is None:
        return language
    values = language.values | {"architectures": [origin]}
    if origin == ARCHITECTURES["internlm2"]:
        values["bias"] = language.values.get("attention_bias", False)
    return Section(language.place, values)


def _read_hf_vision(section: Section) -> VisionConfig:
    section.require("hidden_act", "gelu", default="gelu")
    section.require("num_channels", 3, default=3)
    section.require("norm_type", "layer_norm", "rms_norm", default="layer_norm")
    section.require("use_mask_token", False, default=False)
    section.require("use_absolute_position_embeddings", True, default=True)
    section.require("use_mean_pooling", True, default=True)
    return VisionConfig(
        hidden_size=section.integer("hidden_size", 1024),
        num_layers=section.integer("num_hidden_layers", 24),
        num_heads=section.integer("num_attention_heads", 16),
        intermediate_size=section.integer("intermediate_size", 4096),
        image_size=section.side("image_size", 448),
        patch_size=section.side("patch_size", 14),
        norm="rms_norm" if section.values.get("norm_type") == "rms_norm" else "layer_norm",
        norm_eps=section.number("layer_norm_eps", 1e-6),
        qkv_bias=section.flag("attention_bias", False),
        qk_norm=section.flag("use_qk_norm", False),
        drop_path_rate=section.number("drop_path_rate", 0.0),
    )


def _hf_values(config: InternVLConfig) -> dict[str, Any]:
    require_expressible(config, "hf")
    vision, kind = config.vision, config.decoder.kind
    text_kind: DecoderKind = "llama" if kind == "internlm2" else kind
    values: dict[str, Any] = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": config.downsample_ratio,
        "image_seq_length": config.tokens_per_tile,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "dtype": config.dtype,
        "torch_dtype": config.dtype,
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "text_config": write_decoder(config.decoder, text_kind) | {"dtype": config.dtype},
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "hidden_act": "gelu",
            "norm_type": vision.norm,
            "layer_norm_eps": vision.norm_eps,
            "attention_bias": vision.qkv_bias,
            "use_qk_norm": vision.qk_norm,
            "image_size": [vision.image_size, vision.image_size],
            "patch_size": [vision.patch_size, vision.patch_size],
            "num_channels": 3,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "drop_path_rate": vision.drop_path_rate,
            "dtype": config.dtype,
        },
    }
    return values | _official_keys(config)


def _official_keys(config: InternVLConfig) -> dict[str, Any]:
    """What transformers' form has no place for, under the official names; it passes over them."""
    keys: dict[str, Any] = {
        "template": config.template,
        "llm_architecture": ARCHITECTURES[config.decoder.kind],
        "force_image_size": config.tile_size,
        "ps_version": config.ps_version,
        "dynamic_image_size": config.dynamic_tiles,
        "min_dynamic_patch": config.min_tiles,
        "max_dynamic_patch": config.max_tiles,
        "use_thumbnail": config.use_thumbnail,
        "pad2square": config.pad2square,
    }
    if config.system_message is not None:
        keys["system_message"] = config.system_message
    if config.image_token_id is not None:
        keys["image_token_id"] = config.image_token_id
    return keys


def _ps_version(section: Section, default: str) -> Literal["v1", "v2"]:
    section.require("ps_version", "v1", "v2", default=default)
    return "v1" if section.values.get("ps_version", default) == "v1" else "v2"


def _optional_text(section: Section, key: str) -> str | None:
    return None if section.values.get(key) is None else section.text(key)


def _dtype(*sections: Section) -> DTypeName:
    """The stored number format: the first one that a section names."""
    names: dict[str, DTypeName] = {
        "bfloat16": "bfloat16",
        "float16": "float16",
        "float32": "float32",
    }
    for section in sections:
        name = section.values.get("torch_dtype") or section.values.get("dtype")
        if name is None:
            continue
        if str(name).removeprefix("torch.") not in names:
            raise ValueError(
                f"{section.place}: dtype {name!r} is unknown; known: {', '.join(names)}"
            )
        return names[str(name).removeprefix("torch.")]
    return "bfloat16"


def _image_token_id(section: Section, directory: Path) -> int | None:
    """The id of <IMG_CONTEXT>: as config.json says, else as the tokenizer's files do."""
    for key in ("image_token_id", "img_context_token_id"):
        if section.values.get(key) is not None:
            return section.integer(key)
    path = directory / "added_tokens.json"
    if path.is_file() and IMAGE_TOKEN in (added := read_json(path)).values:
        return added.integer(IMAGE_TOKEN)
    for name, key in (
        ("tokenizer_config.json", "added_tokens_decoder"),
        ("tokenizer.json", "added_tokens"),
    ):
        path = directory / name
        listed = read_json(path).values.get(key) if path.is_file() else None
        if isinstance(listed, dict):
            listed = [
                {**entry, "id": token_id}
                for token_id, entry in listed.items()
                if isinstance(entry, dict)
            ]
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, dict) and entry.get("content") == IMAGE_TOKEN:
                return _id(path, entry.get("id"))
    return None


def _id(path: Path, value: object) -> int:
    if not str(value).isdecimal():
        raise ValueError(f"{path}: the id of {IMAGE_TOKEN} is {value!r}; it must be a whole number")
    return int(str(value))


def tied_embeddings(directory: str | Path) -> bool:
    """Whether config.json lets the output head share the embedding's numbers.

    transformers' own form ties them unless it says otherwise.
    """
    section = read_json(Path(directory) / "config.json")
    if is_hf(section):
        return section.flag("tie_word_embeddings", True)
    return section.section("llm_config").flag("tie_word_embeddings", False)
