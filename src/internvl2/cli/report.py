"""What is told about an answer beside its text: one JSON object, or one line on standard error."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from internvl2.engine.sequence import Answer, Output, Usage


def as_json(model: str, answer: "Answer", load_s: float) -> str:
    """The answer and all about it as one line of JSON."""
    timings = answer.timings
    speed = timings.tokens_per_s(answer.usage.completion_tokens)
    return json.dumps(
        {
            "model": model,
            "prompt_token_ids": answer.prompt_token_ids,
            "token_ids": answer.token_ids,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": usage_fields(answer.usage),
            "tiles": [
                {"columns": span.columns, "rows": span.rows, "thumbnail": span.thumbnail}
                for span in answer.media
            ],
            "timings": {
                "load_s": round(load_s, 4),
                "first_token_s": round(timings.first_token_s, 4),
                "tokens_per_s": round(speed, 2),
            },
        },
        ensure_ascii=False,
    )


def usage_fields(usage: "Usage") -> dict[str, int]:
    """The counts that we publish, under the names of the OpenAI API."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "image_tokens": usage.image_tokens,
    }


@dataclass
class Clock:
    """Watches an answer go by and says how fast it was."""

    started: float = field(default_factory=time.perf_counter)
    first_s: float = 0.0
    total_s: float = 0.0
    last: "Output | None" = None

    def watch(self, outputs: "Iterator[Output]") -> "Iterator[Output]":
        """The same outputs, with the time taken."""
        for output in outputs:
            self.total_s = time.perf_counter() - self.started
            self.first_s = self.first_s if self.last else self.total_s
            self.last = output
            yield output

    def summary(self, load_s: float | None = None) -> str:
        """One line: tokens, seconds, tokens per second."""
        if self.last is None:
            return "no token was written"
        usage = self.last.usage
        after_first = self.total_s - self.first_s
        count = usage.completion_tokens
        speed = (count - 1) / after_first if count > 1 and after_first > 0 else 0.0
        loading = "" if load_s is None else f"; loaded in {load_s:.2f} s"
        return (
            f"[{count} tokens, {speed:.1f} tokens/s, first after {self.first_s:.2f} s; prompt of "
            f"{usage.prompt_tokens} tokens, {usage.image_tokens} of them visual{loading}]"
        )
