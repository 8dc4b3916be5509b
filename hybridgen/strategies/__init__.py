"""The strategies by name. They import torch, and so are imported when they are asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hybridgen.strategies.base import Strategy
    from hybridgen.strategies.custom import GenerationStrategy


def built_in_strategies() -> dict[str, Strategy | GenerationStrategy]:
    """A new dict: add to it, replace in it."""
    from hybridgen.strategies import declarations
    from hybridgen.strategies.routing import TokenRouting
    from hybridgen.strategies.single import Single
    from hybridgen.strategies.speculative import Speculative

    built_in: tuple[Strategy, ...] = (
        Speculative(),
        TokenRouting(declarations.UNCERTAINTY),
        TokenRouting(declarations.ENTROPY),
        Single(declarations.LLM),
        Single(declarations.SLM),
    )
    return {strategy.declaration.name: strategy for strategy in built_in}
