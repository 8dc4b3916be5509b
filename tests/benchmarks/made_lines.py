"""Results that nobody measured, for tests of what is made of them."""

import math
import random
from typing import Any

from hybridgen.benchmarks.lines import Line

SETTING: dict[str, Any] = {
    "prompts": "code",
    "num_prompts": 4,
    "new_tokens": 25,
    "batch": 1,
    "sampling": {"temperature": 0.0},
    "dtypes": {"slm": "float32", "llm": "bfloat16"},
    "device": "cpu",
    "threads": 2,
}
CONDITIONS: dict[str, Any] = {
    "date": "2026-01-02",
    "command": "hybridgen bench quick",
    "commit": "0123456789ab",
    "machine": {"device": "CPU, AVX512", "threads": 2},
    "versions": {"python": "3.11.1", "torch": "2.14.1+cu130", "transformers": "5.24.0"},
}


def line(
    contender: str,
    milliseconds: list[float] | None = None,
    *,
    setting: dict[str, Any] | None = None,
    **rest: Any,
) -> Line:
    """A line whose repeats took so long a token; of wrong text where none are given."""
    tokens = 100
    timed = {
        "text": "right",
        "tokens": tokens,
        "seconds": [each * tokens / 1e3 for each in milliseconds or []],
        "conditions": CONDITIONS,
    }
    wrong = {"text": "wrong: token 3 | is no choice", "conditions": CONDITIONS}
    return Line(
        **{
            "suite": "quick",
            "pair": "embedded",
            "contender": contender,
            "setting": SETTING | (setting or {}),
            **(wrong if milliseconds is None else timed),
            **rest,
        }
    )


def noisy(center: float, repeats: int, draw: random.Random, noise: float = 0.03) -> list[float]:
    """Times around ``center``, with so much log-normal noise."""
    return [center * math.exp(draw.gauss(0, noise)) for _ in range(repeats)]
