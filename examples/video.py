"""Ask about a part of a video: `python examples/video.py [MODEL [VIDEO]]`."""

import sys
from pathlib import Path

from internvl2 import Engine, Message, SamplingParams, Video

RECORDED = Path(__file__).parents[1] / "tests" / "data" / "official"


def main(
    model: str = str(RECORDED / "A_internlm2" / "checkpoint"),
    video: str = str(RECORDED / "preprocessing" / "video.mp4"),
) -> None:
    """Four frames of the first second, one tile each."""
    clip = Video(video, num_frames=4, start=0.0, end=1.0)
    with Engine.load(model) as engine:
        question = [Message.user(clip, "What happens here?")]
        answer = engine.answer(question, SamplingParams(max_tokens=32))
        print(answer.text)
        print(f"{len(answer.media)} frames, {answer.usage.image_tokens} visual tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
