"""The files beside the weights: tokenizer, chat template, stop tokens, picture preparation."""

import shutil
from pathlib import Path
from typing import Any

from internvl2.checkpoint.config_files import Layout, TokenIds
from internvl2.checkpoint.fields import read_json, write_json
from internvl2.processing.processor import Processor
from internvl2.processing.tokenizer_writer import save_tokenizer, template_prefix

VOCABULARIES = ("tokenizer.model", "tokenizer.json", "vocab.json")
# Mean and deviation of ImageNet's pixels, as in the official transform.
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the vocabulary of a tokenizer."""
    return any((directory / name).is_file() for name in VOCABULARIES)


def write_companions(processor: Processor, directory: Path, layout: Layout) -> None:
    """Write everything but the weights and config.json, so that the directory is complete."""
    template = chat_template(processor, layout)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    save_tokenizer(processor.tokenizer, directory, layout, template)
    write_json(directory / "generation_config.json", _generation_config(processor))
    if layout == "hf":
        write_json(directory / "preprocessor_config.json", _hf_pictures(processor))
        write_json(directory / "video_preprocessor_config.json", _hf_videos(processor))
        write_json(
            directory / "processor_config.json",
            {
                "processor_class": "InternVLProcessor",
                "image_seq_length": processor.config.tokens_per_tile,
            },
        )
    else:
        write_json(directory / "preprocessor_config.json", _official_pictures(processor))


def token_ids(processor: Processor) -> TokenIds:
    """The ids that configurations name; Qwen's have the padding token for the missing bos."""
    tokenizer = processor.tokenizer

    def named(key: str) -> int | None:
        text = tokenizer.files.named.get(key)
        return None if text is None else tokenizer.id_of(text)

    pad = named("pad_token")
    bos = named("bos_token")
    return TokenIds(pad if bos is None else bos, processor.stop_token_ids[0], pad)


def keep_remote_code(source: Path, directory: Path) -> None:
    """Copy the model code that other programs run from an official release, and what names it.

    We neither read nor run it.
    """
    codes = sorted(source.glob("*.py"))
    original = read_json(source / "config.json").values
    if not codes or "auto_map" not in original:
        return
    for code in codes:
        shutil.copyfile(code, directory / code.name)
    written = dict(read_json(directory / "config.json").values)
    written["auto_map"] = original["auto_map"]
    inner = original.get("llm_config", {}).get("auto_map")
    if inner is not None:
        written["llm_config"] = {**written["llm_config"], "auto_map": inner}
    write_json(directory / "config.json", written)


def chat_template(processor: Processor, layout: Layout) -> str:
    """The prompt that we render, as a Jinja template for other programs."""
    picture = "<IMG_CONTEXT>" if layout == "hf" else "<image>"
    return processor.template.jinja(
        system=processor.config.system_message,
        prefix=template_prefix(processor.tokenizer),
        picture=picture,
    )


def _generation_config(processor: Processor) -> dict[str, Any]:
    """Every token that ends an answer, so that other programs stop where we do."""
    ids = token_ids(processor)
    values = {"bos_token_id": ids.bos, "pad_token_id": ids.pad}
    values |= {"eos_token_id": list(processor.stop_token_ids), "do_sample": False}
    return {key: value for key, value in values.items() if value is not None}


def _official_pictures(processor: Processor) -> dict[str, Any]:
    """What the official releases carry: a tile's side and the pixels' statistics."""
    side = processor.config.tile_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": side,
        "size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "resample": 3,
    }


def _hf_pictures(processor: Processor) -> dict[str, Any]:
    """Tiling as transformers does it: the same grids, its own resize."""
    config = processor.config
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": config.dynamic_tiles,
        "min_patches": config.min_tiles,
        "max_patches": config.max_tiles,
        "size": {"height": config.tile_size, "width": config.tile_size},
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _hf_videos(processor: Processor) -> dict[str, Any]:
    """transformers' own defaults have other statistics and a smaller picture."""
    side = processor.config.tile_size
    return {
        "video_processor_type": "InternVLVideoProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": side, "width": side},
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "do_sample_frames": True,
        "num_frames": 8,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
