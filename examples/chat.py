"""Hold a conversation about a picture: `python examples/chat.py [MODEL [PICTURE]]`."""

import sys
from pathlib import Path

from internvl2 import Engine, SamplingParams

RECORDED = Path(__file__).parents[1] / "tests" / "data" / "official"


def main(
    model: str = str(RECORDED / "A_internlm2" / "checkpoint"),
    picture: str = str(RECORDED / "preprocessing" / "pictures" / "wide_900x448.jpg"),
) -> None:
    """Two questions; the second streams, and knows the first."""
    with Engine.load(model) as engine:
        chat = engine.chat(params=SamplingParams(max_tokens=32))
        answer = chat.ask("What is in the picture?", images=[picture])
        print(answer.text, f"({answer.usage.prompt_tokens} tokens in the prompt)")
        for output in chat.stream("Which colours do you see?"):
            print(output.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
