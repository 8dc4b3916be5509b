"""What the caches still hold as a call begins: the next turn of a conversation goes on from there.

A call remembers the tokens of each row, and how many of them each model has read. The next one
compares tokens, row by row, and reads its prompt from the first that differs. So what is skipped is
what has been read, whoever calls with whatever prompt. Keys and values of tokens that were written
come from a decoding forward and not from a prompt's blocks: they may differ in their last bits.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from hybridgen.prefix import common_prefix


class Held:
    """tokens    by row, the tokens of the text that was written there last
    read      int64 [2, rows]: of how many, from the start on, the SLM and the LLM have keys and
              values. It is read back when it is asked for: a call does not wait for its last round
    """

    def __init__(self, tokens: dict[int, Sequence[int]], read: Tensor) -> None:
        self.tokens, self.read = tokens, read

    @cached_property
    def _counts(self) -> list[list[int]]:
        counts: list[list[int]] = self.read.t().tolist()
        return counts

    def take(self, row: int, prompt: Sequence[int]) -> tuple[int, int]:
        """How many tokens of ``prompt`` the SLM and the LLM need not read into ``row``.

        The row is another's from now on. A prompt's last token is always left: it is read by the
        round that writes the first new one.
        """
        tokens = self.tokens.pop(row, ())
        most = min(common_prefix(tokens, prompt), len(tokens) - 1, len(prompt) - 1)
        if most <= 0:
            return 0, 0
        slm, llm = self._counts[row]
        return min(slm, most), min(llm, most)


def nothing_held() -> Held:
    """No row."""
    return Held({}, torch.zeros((2, 0), dtype=torch.int64, device="cpu"))
