"""A pair is refused when a vocabulary is wider than what the sampling kernels add up."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hybridgen.engine.pair import Pair
from hybridgen.kernels.weights import MAX_VOCAB


@pytest.mark.parametrize(("slm", "llm", "name"), [(1, 0, "SLM"), (0, 1, "LLM")])
def test_a_vocabulary_beyond_the_limit_is_refused(slm: int, llm: int, name: str) -> None:
    """By its name and with the limit, before anything is allocated."""
    models = (cast(Any, SimpleNamespace(vocab_size=MAX_VOCAB + more)) for more in (slm, llm))
    with pytest.raises(ValueError, match=f"the {name}'s vocab_size must be at most 524287, got 52"):
        Pair(*models, max_rows=1, positions=16)
