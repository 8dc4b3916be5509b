"""Whatever `generate` is asked, an accelerated model writes what transformers writes."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from bridge_models import PROMPTS, pair
from contract import CASES, MIXED, Case
from torch import Tensor

from hybridgen.bridge import accelerate

GREEDY = [case for case in [*CASES, *MIXED] if not case.sampled]
STRATEGIES: list[dict[str, Any]] = [
    {"num_drafts": 4, "verification": "rejection"},
    {"num_drafts": 1, "verification": "coupled"},
    {"num_drafts": 7},
    {},
    {"strategy": "llm"},
]
FAMILIES = ["qwen3", "llama", "gpt2", "gemma2"]
# Every argument with one native family, and a few of each kind with others.
TRIED = [(FAMILIES[0], case) for case in GREEDY]
TRIED += [(family, case) for family in FAMILIES[1:] for case in [*MIXED, GREEDY[2], GREEDY[-2]]]


@lru_cache(maxsize=len(FAMILIES))
def accelerated(family: str) -> Any:
    small, large = pair(family)
    return large, accelerate(large, small, max_batch_size=2)


def arguments(case: Case, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    chosen = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": 0}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        **chosen,
        **case.arguments,
        **case.prompt(ids),
    }


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("family", "case"), TRIED, ids=lambda part: getattr(part, "feature", part).replace(" ", "-")
)
def test_greedy_text_is_what_transformers_writes(family: str, case: Case, batch: int) -> None:
    large, fast = accelerated(family)
    ids, mask = PROMPTS[batch]
    given = arguments(case, ids, mask)
    expected = large.generate(**given)
    found = [fast.generate(**given, **strategy) for strategy in STRATEGIES]
    for strategy, one in zip(STRATEGIES, found, strict=True):
        assert one.dtype == expected.dtype
        assert one.shape == expected.shape, (strategy, one, expected)
        assert torch.equal(one, expected), (strategy, one, expected)
