"""The strategies by name."""

from hybridgen.strategies.base import GenerationStrategy
from hybridgen.strategies.routing import Routing
from hybridgen.strategies.single import Single
from hybridgen.strategies.speculative import Speculative


def built_in_strategies() -> dict[str, GenerationStrategy]:
    """A new dict: add to it, replace in it."""
    built_in = (
        Speculative(),
        Routing("uncertainty", default_threshold=0.5),
        Routing("entropy", default_threshold=2.5),
        Single("llm"),
        Single("slm"),
    )
    return {strategy.name: strategy for strategy in built_in}
