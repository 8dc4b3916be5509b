"""Texts that a generator's strategies write of prompts, with what scoring them needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hybridgen.parameters import FIELDS
from hybridgen.strategies.base import Strategy

if TYPE_CHECKING:
    from hybridgen.generator import HybridGenerator
    from hybridgen.request import Request


@dataclass(frozen=True)
class Texts:
    """What was written of each prompt.

    prompts      token ids
    tokens       the new ones
    llm_tokens   how many of them the LLM wrote
    seeds        of each text
    seconds      for all of them
    """

    prompts: list[list[int]]
    tokens: list[list[int]]
    llm_tokens: list[int]
    seeds: list[int]
    seconds: float

    @property
    def total(self) -> int:
        """New tokens."""
        return sum(map(len, self.tokens))

    @property
    def llm_fraction(self) -> float:
        """The share of new tokens that the LLM wrote; 0 of none."""
        return sum(self.llm_tokens) / max(self.total, 1)

    @property
    def whole(self) -> list[list[int]]:
        """Prompts and new tokens."""
        return [prompt + new for prompt, new in zip(self.prompts, self.tokens, strict=True)]

    @property
    def firsts(self) -> list[int]:
        """Where the new tokens begin."""
        return [len(prompt) for prompt in self.prompts]


def refuse_options(call: str, options: Mapping[str, Any], *names: str) -> None:
    """TypeError for options of `generate` that ``call`` decides about itself."""
    for name in names:
        if name in options:
            raise TypeError(f"{call}() got an unexpected argument {name!r}: it has its own")


def request_of(
    generator: "HybridGenerator", strategy: Strategy, prompts: Any, options: Mapping[str, Any]
) -> "Request":
    """The request of `generator.generate(prompts, **options)`, for ``strategy`` whatever its name.

    Raises as `generate` does.
    """
    given = {field.name: field.default for field in FIELDS}
    given["strategy"] = strategy.declaration.name
    extra = {name: value for name, value in options.items() if name not in given}
    given |= {name: value for name, value in options.items() if name in given}
    return generator._checked(strategy, prompts, given, extra)


def written(generator: "HybridGenerator", strategy: Strategy, request: "Request") -> Texts:
    """Let ``strategy`` write the texts of ``request``."""
    device = generator.device.type
    with generator.pair.turn(), torch.inference_mode(), torch.autocast(device, enabled=False):
        result = strategy.run(generator.pair, request, generator.tokenizer)
    rows = result.stats["rows"]
    return Texts(
        prompts=[[*ids] for ids in request.prompt_ids],
        tokens=result.tokens,
        llm_tokens=[row["llm_tokens"] for row in rows],
        seeds=[row["seed"] for row in rows],
        seconds=result.stats["elapsed_time"],
    )
