"""What a request asks to be done to logits before tokens are drawn from them.

The fields mean what transformers' logits processors of these names do, and apply in its order:
``bias``, ``repetition_penalty``, ``no_repeat_ngram_size``, ``min_new_tokens``, then ``functions``;
temperature and the filters come after them all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

RowFunction = Callable[[int, Any, Any], Any]
"""(text, ids [1, T] int64, scores [1, V] float32) -> scores [1, V].

``text`` is the index of the prompt among the request's, ``ids`` are all tokens before the one that
the scores are of. It is asked about drafts too, some of which are not accepted, so it must depend
on its arguments alone. One with a true attribute ``llm_only`` is not asked about the SLM's scores.
"""


def is_llms(function: RowFunction) -> bool:
    """Whether a function is for the LLM's scores alone."""
    return bool(getattr(function, "llm_only", False))


@dataclass(frozen=True)
class Adjustment:
    """Nothing by default.

    bias        what is added to the logits of these ids; -inf: they are never written
    ends        the ids that ``min_new_tokens`` keeps away
    functions   called for each row and position, on the host
    fronts      tokens that stand in front of each prompt for its processors alone: transformers
                shows them a prompt with its padding; none where it is empty
    counted     for each prompt the position from which tokens count as repeated, 0 where it is
                empty; what stands in front of a prompt is at -1, -2, ...
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    ends: tuple[int, ...] = ()
    functions: tuple[RowFunction, ...] = ()
    fronts: tuple[tuple[int, ...], ...] = ()
    counted: tuple[int, ...] = ()

    @property
    def on_device(self) -> bool:
        """Whether there is anything beside ``functions``."""
        return bool(
            self.bias
            or self.repetition_penalty != 1
            or self.no_repeat_ngram_size
            or (self.min_new_tokens and self.ends)
        )

    @property
    def is_empty(self) -> bool:
        """Whether logits stay as they are."""
        return not (self.on_device or self.functions)
