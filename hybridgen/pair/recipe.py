"""The numbers of the recipe in one place: the shipped pair's, and a tiny run's for the tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.pair.loop import Budget, Phase

# What the checkpoints recommend: text of so small a model repeats itself, greedy text above all.
SAMPLING: dict[str, Any] = {
    "temperature": 0.85,
    "top_k": 40,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
}
LLM_BUDGET = Budget(14_000)
SLM_BUDGET = Budget(8_000)


@dataclass(frozen=True)
class Recipe:
    """What to train; the defaults are a good pair's, with ``packages``.

    ``start`` is a folder with a pair, llm and slm, to train on instead of a new one; a trained pair
    forgets less at a lower ``lr_scale``, the factor on every learning rate.

    A step reads the same number of tokens in every phase of a stage. Short windows come first:
    they are cheaper, and what a young model learns is local anyway.
    """

    seed: int = 0
    processes: int = 1
    compiled: bool = True
    max_files: int | None = None
    packages: Path | None = None
    start: Path | None = None
    lr_scale: float = 1.0
    llm_phases: tuple[Phase, ...] = (Phase(0.4, 32, 256), Phase(0.85, 16, 512), Phase(1.0, 8, 1024))
    llm_budget: Budget = LLM_BUDGET
    sample_count: int = 6144
    sample_length: int = 288
    slm_phases: tuple[Phase, ...] = (Phase(1.0, 4, 1024),)
    slm_budget: Budget = SLM_BUDGET
    eval_prompts: int = 64
    eval_tokens: int = 192
    completions: int = 40
    drafts: int = 4


SMOKE = Recipe(
    processes=1,
    compiled=False,
    max_files=4,
    llm_phases=(Phase(1.0, 2, 64),),
    llm_budget=Budget(3),
    sample_count=4,
    sample_length=48,
    slm_phases=(Phase(1.0, 2, 64),),
    slm_budget=Budget(3),
    eval_prompts=4,
    eval_tokens=16,
    completions=4,
)


def tokens_a_step(phases: tuple[Phase, ...]) -> int:
    """Tokens a step over all processes."""
    (tokens,) = {phase.rows * phase.length for phase in phases}
    return tokens
