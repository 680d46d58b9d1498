"""Ask about a part of a video: `python examples/video.py [MODEL [VIDEO]]`."""

import sys
from pathlib import Path

from internvl2 import Engine, Message, SamplingParams, Video

ARROW = Path(__file__).parents[1] / "docs" / "pictures" / "arrow.gif"


def main(model: str = "nano", video: str = str(ARROW)) -> None:
    """Five frames of the first two and a half seconds, one tile each."""
    clip = Video(video, num_frames=5, start=0.0, end=2.5)
    with Engine.load(model) as engine:
        question = [Message.user(clip, "Which way does the arrow move?")]
        answer = engine.answer(question, SamplingParams(max_tokens=32))
        print(answer.text)
        print(f"{len(answer.media)} frames, {answer.usage.image_tokens} visual tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
