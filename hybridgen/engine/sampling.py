"""How a token is drawn from logits."""

from typing import NamedTuple


class Sampling(NamedTuple):
    """In the order in which they apply, and of the columns that the kernels read.

    temperature    what logits are divided by; 0 is greedy
    top_k          keep the k likeliest tokens; 0 is off
    top_p          keep the likeliest tokens that make up this probability; 1 is off
    min_p          drop tokens less likely than this share of the likeliest; 0 is off
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0
