"""The strategies by name. They import torch, and so are imported when they are asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hybridgen.strategies.base import GenerationStrategy, RoundStrategy


def built_in_strategies() -> dict[str, GenerationStrategy | RoundStrategy]:
    """A new dict: add to it, replace in it."""
    from hybridgen.strategies import declarations
    from hybridgen.strategies.routing import Routing
    from hybridgen.strategies.single import Single
    from hybridgen.strategies.speculative import Speculative

    built_in: tuple[RoundStrategy, ...] = (
        Speculative(),
        Routing(declarations.UNCERTAINTY),
        Routing(declarations.ENTROPY),
        Single(declarations.LLM),
        Single(declarations.SLM),
    )
    return {strategy.name: strategy for strategy in built_in}
