"""The router that a metric must beat: it asks the LLM for tokens at random.

It runs on the same engine as the others, and takes the same time. Its metric is noise, uniform from
0 to 1 and a function of the row's seed and the position alone, so that at a threshold t the LLM
writes a token with probability 1 - t.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hybridgen.engine.loop import Program
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import integers, moved
from hybridgen.engine.steps import append, feed
from hybridgen.kernels.philox import RESIDUAL, TARGET, uniform
from hybridgen.kernels.sampling import sample
from hybridgen.kernels.verify import SOURCE_SLM
from hybridgen.kernels.window import up_to
from hybridgen.request import Request
from hybridgen.strategies.declarations import UNCERTAINTY
from hybridgen.strategies.routing import Routed, TokenRouting, decide

ROUTER = RESIDUAL + 1  # a stream of its own: the noise is independent of what tokens are drawn by


class RandomRouting(TokenRouting):
    """Token routing by noise; its requests have a threshold."""

    def __init__(self) -> None:
        super().__init__(
            replace(UNCERTAINTY, name="random", help="the LLM writes tokens at random")
        )

    def load(self, batch: Batch, request: Request, rows: Sequence[int]) -> None:
        super().load(batch, request, rows)
        noise = batch.own(allocate_noise)
        index = moved(integers([*rows]), noise.device)
        seeds = batch.rows.seed.index_select(0, index).cpu().numpy()
        drawn = uniform(seeds[:, None], up_to(noise.shape[1])[None], 0, ROUTER)
        noise.index_copy_(0, index, moved(torch.from_numpy(drawn), noise.device))

    def program(self, batch: Batch, request: Request) -> Program:
        writes = request.llm_consecutive_tokens
        batch.own(allocate_noise)  # before the round that reads it is captured
        return Routed(batch.round(random_round, writes), batch, writes)


def allocate_noise(batch: Batch) -> Tensor:
    """[B, T] float32: the metric of each place."""
    tokens = batch.rows.tokens
    return torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)


def random_round(batch: Batch, count: int) -> None:
    """As `routing.slm_round`, by noise in place of a metric."""
    rows = batch.rows
    logits = feed(rows, batch.slm, count).select(1, -1)
    token, truncation = sample(logits, rows.sampling, rows.seed, rows.length, TARGET)
    noise = batch.own(allocate_noise)
    metric = noise.gather(1, rows.length.unsqueeze(1)).select(1, 0)
    stands = decide(batch, metric, moving=False)
    append(rows, token.unsqueeze(1), stands, None, SOURCE_SLM, truncation=truncation)
