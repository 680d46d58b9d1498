"""Hold a conversation about a picture: `python examples/chat.py [MODEL [PICTURE]]`."""

import sys
from pathlib import Path

from internvl2 import Engine, SamplingParams

RECEIPT = Path(__file__).parents[1] / "docs" / "pictures" / "receipt.png"


def main(model: str = "nano", picture: str = str(RECEIPT)) -> None:
    """Two questions; the second streams, and knows the first."""
    with Engine.load(model) as engine:
        chat = engine.chat(params=SamplingParams(max_tokens=32))
        answer = chat.ask("What is the total?", images=[picture])
        print(answer.text, f"({answer.usage.prompt_tokens} tokens in the prompt)")
        for output in chat.stream("When was it bought?"):
            print(output.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
