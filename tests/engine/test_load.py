"""An engine from a directory: in ten lines it answers, and what cannot fit fails early."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl2 import device as devices
from internvl2.engine import opening
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.memory import NotEnoughMemory
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.image import Grid, cut
from internvl2.processing.pixels import EncodedPicture, PictureOptions

SOURCE = Path(__file__).parents[2] / "src"
SHORT = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def directory(recording):
    return recording("A_internlm2").checkpoint


def picture(seed: int, width: int = 300, height: int = 200) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_conversation_with_pictures_is_answered_streamed_and_remembered(directory):
    with Engine.load(directory, device="cpu") as engine:
        chat = engine.chat(params=SHORT)
        answer = chat.ask("What is the total?", images=[picture(0)])
        later = "".join(output.text for output in chat.stream("And on this one?", [picture(1)]))
        assert answer.usage.image_tokens == 16 * sum(span.num_tiles for span in answer.media)
        assert [message.role for message in chat.messages] == ["user", "assistant"] * 2
        assert chat.messages[-1].text == later


def test_a_batch_equals_its_parts(directory):
    asked = [
        [Message.user("How many people are there?")],
        [Message.user(Picture(picture(0)), "Describe the picture.")],
        [Message.user(Picture(picture(1)), Picture(picture(2, 90, 90)), "Compare them.")],
    ]
    with Engine.load(directory, device="cpu", dtype="float32") as engine:
        together = [answer.token_ids for answer in engine.generate(asked, SHORT)]
        assert together == [engine.answer(one, SHORT).token_ids for one in asked]


def test_a_picture_that_was_seen_before_is_neither_decoded_nor_encoded_again(
    directory, tmp_path, monkeypatch
):
    path = tmp_path / "page.png"
    picture(0).save(path)
    decoded = []
    decode = EncodedPicture.decode
    monkeypatch.setattr(EncodedPicture, "decode", lambda x: (decoded.append(x.name), decode(x))[1])
    with Engine.load(directory, device="cpu") as engine:
        chat = engine.chat(params=SHORT)
        first = chat.ask("What is this?", images=[path])
        chat.ask("And this?", images=[path.read_bytes()])
        other = engine.answer([Message.user(Picture(str(path)), "What is this?")], SHORT)
        tiles = sum(span.num_tiles for span in first.media)
        assert len(decoded) == 1
        assert engine.runner.vision.num_encoded == tiles
        assert other.token_ids == first.token_ids


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_pictures_are_resized_as_the_engine_was_asked(directory, arithmetic):
    pictures = PictureOptions(arithmetic=arithmetic)
    with Engine.load(directory, device="cpu", pictures=pictures) as engine:
        prompt = engine.encode([Message.user(Picture(picture(0)), "What?")])
        span, side = prompt.media[0], engine.model.config.tile_size
        expected = cut(picture(0), Grid(span.columns, span.rows), side, True, arithmetic)
        assert (prompt.tiles == expected).all()


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(directory, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 10_000_000)
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(NotEnoughMemory, match="GiB can be used"):
        Engine.load(directory, device="cpu", options=EngineOptions(max_context=32768))


def test_a_prompt_that_is_too_long_says_which_tile_budget_would_fit(directory):
    options = EngineOptions(max_context=160)
    with (
        Engine.load(directory, device="cpu", options=options) as engine,
        pytest.raises(ValueError, match="with max_tiles 11 it would fit"),
    ):
        engine.answer([Message.user(Picture(picture(0, 448, 336)), "What?")], SHORT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_formats_answer_on_a_cpu_too(directory, dtype):
    with Engine.load(directory, device="cpu", dtype=dtype) as engine:
        params = SamplingParams(max_tokens=6, ignore_eos=True)
        answer = engine.answer([Message.user(Picture(picture(0)), "What?")], params)
    assert len(answer.token_ids) == 6


@pytest.mark.slow
def test_loading_does_not_import_the_compiler_of_torch(recording):
    """It would take more time than all else that a small model needs to start."""
    code = (
        "import sys\n"
        "from internvl2.engine.engine import Engine\n"
        "Engine.load(sys.argv[1], device='cpu')\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)\n"
    )
    directory = recording("B_qwen2").checkpoint
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, cwd=SOURCE)
