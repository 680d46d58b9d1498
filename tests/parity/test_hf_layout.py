"""What we write in transformers' layout computes the same there; the peer is only an oracle."""

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.convert import convert
from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.rotary import Positions
from internvl2.processing.conversation import Message, Picture, Text
from internvl2.processing.processor import Processor

pytestmark = pytest.mark.slow

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.mark.parity
@pytest.mark.parametrize("case", ["A_internlm2", "B_qwen2", "C_phi3", "D_llama3_vit6b", "F_qwen3"])
def test_transformers_computes_the_same_logits(case, data, tmp_path):
    from transformers import InternVLForConditionalGeneration  # takes seconds

    convert(data("official", case, "checkpoint"), tmp_path / "hf", "hf")
    ours = load_model(tmp_path / "hf")
    theirs, report = InternVLForConditionalGeneration.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    config = ours.config
    random = np.random.default_rng(0)
    words = torch.from_numpy(random.integers(5, 800, 13))
    pictures = torch.full((config.tokens_per_tile,), config.image_token_id)
    tokens = torch.cat([words[:4], pictures, words[4:]])
    shape = (1, config.tile_size, config.tile_size, 3)
    tiles = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
    pixels = ((tiles / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = theirs(input_ids=tokens[None], pixel_values=pixels).logits[0]
        lengths = [len(tokens)]
        attend = PackedAttention.of(lengths)
        found = ours.logits(ours(tokens, Positions.packed(lengths), tiles, attend))
    assert (wanted - found).abs().max() <= 2e-4


@pytest.mark.parity
@pytest.mark.parametrize("case", ["A_internlm2", "B_qwen2", "C_phi3", "D_llama3_vit6b", "F_qwen3"])
def test_what_transformers_saves_loads_here(case, data, tmp_path):
    from transformers import InternVLForConditionalGeneration

    convert(data("official", case, "checkpoint"), tmp_path / "hf", "hf")
    theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    wanted, found = load_model(tmp_path / "hf"), load_model(tmp_path / "saved")
    assert found.config.decoder.rotary == wanted.config.decoder.rotary
    assert found.config == wanted.config
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parity
@pytest.mark.parametrize("case", ["A_internlm2", "B_qwen2", "C_phi3", "F_qwen3"])
def test_written_processor_files_give_our_tiles_and_tokens(case, data, tmp_path):
    from transformers import AutoTokenizer

    module = "transformers.models.got_ocr2.image_processing_pil_got_ocr2"
    peer = pytest.importorskip(module).GotOcr2ImageProcessorPil
    convert(data("official", case, "checkpoint"), tmp_path / "hf", "hf")
    picture = data("official", "preprocessing", "pictures", "wide_900x448.jpg")
    processor = Processor.from_directory(tmp_path / "hf", read_config(tmp_path / "hf"))
    ours = processor.encode([Message("user", (Picture(picture), Text("what?")))])
    image = Image.open(picture).convert("RGB")
    theirs = peer.from_pretrained(tmp_path / "hf")(images=[image], return_tensors="pt")
    pixels = ((torch.from_numpy(ours.tiles) / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)
    assert (theirs["pixel_values"] - pixels).abs().max() <= 1e-6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    run = "<IMG_CONTEXT>" * (len(ours.tiles) * processor.config.tokens_per_tile)
    text = text.replace("<IMG_CONTEXT>", f"{tokenizer.start_image_token}{run}</img>")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.token_ids
