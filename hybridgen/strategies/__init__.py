"""The strategies by name. They import torch, and so are imported when they are asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hybridgen.strategies.base import Strategy
    from hybridgen.strategies.custom import GenerationStrategy


def built_in_strategies(has_slm: bool = True) -> dict[str, Strategy | GenerationStrategy]:
    """A new dict: add to it, replace in it. Without an SLM, drafts are looked up in the text."""
    from hybridgen.strategies import declarations
    from hybridgen.strategies.drafts import SlmDrafts
    from hybridgen.strategies.lookup import NgramDrafts
    from hybridgen.strategies.routing import TokenRouting
    from hybridgen.strategies.single import Single
    from hybridgen.strategies.speculative import Speculative

    built_in: tuple[Strategy, ...] = (
        Speculative(SlmDrafts() if has_slm else NgramDrafts()),
        TokenRouting(declarations.UNCERTAINTY),
        TokenRouting(declarations.ENTROPY),
        Single(declarations.LLM),
        Single(declarations.SLM),
    )
    return {strategy.declaration.name: strategy for strategy in built_in}
