"""The names that arguments take, for type checkers; the checks of a call take theirs from here."""

from typing import Literal

StrategyName = Literal["speculative", "uncertainty", "entropy", "llm", "slm"]
Verification = Literal["rejection", "coupled"]
Evidence = Literal["probs", "logits"]
Auto = Literal["auto"]
RoutingMetric = Literal["uncertainty", "entropy"]
DtypeName = Literal["float32", "bfloat16", "float16"]
WeightsName = Literal["int8"]
PairName = Literal[
    "smollm2-1.7b",
    "qwen2.5-7b",
    "qwen2.5-coder-7b",
    "llama-3.1-8b",
    "qwen3-8b",
    "qwen3-8b-1.7b",
    "qwen3-32b",
    "qwen3-32b-1.7b",
]
