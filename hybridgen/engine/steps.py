"""The steps that every strategy's round is made of, as functions of the state and a decoder.

Nothing here decides on the host, reads a value back or allocates anything that grows with the
context: the same code runs eagerly on a CPU and is capturable on a GPU. A row that is done still
computes, and nothing of it changes. Feeding a token twice rewrites the same K/V, which is what
lets rows of different history share one shape.
"""

import torch
from torch import Tensor

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.state import State
from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import LOG_Z, sample
from hybridgen.kernels.verify import commit


def feed(state: State, model: Decoder, count: int, behind: int) -> Tensor:
    """Feed ``count`` tokens of each row, from ``behind`` before its end: logits [B, count, V]."""
    start = state.length - behind
    index = start[:, None] + torch.arange(count, dtype=torch.int64, device=start.device)
    return model(embeddable(state, state.tokens.gather(1, index.clamp_min(0)), model), start)


def embeddable(state: State, tokens: Tensor, model: Decoder) -> Tensor:
    """Ids that ``model`` can embed: one of a pair may pad its vocabulary further than the other."""
    return (
        tokens if model.vocab_size >= state.vocab_size else tokens.clamp_max(model.vocab_size - 1)
    )


def sample_and_commit(state: State, logits: Tensor, active: Tensor, source: int) -> None:
    """Draw the next token from logits [B, V] and append it to the rows of ``active`` [B] bool."""
    token, truncation = sample(logits, state.sampling, state.seed, state.length, TARGET)
    append(state, token[:, None], active.long(), truncation[:, LOG_Z].isnan(), source)


def append(state: State, new: Tensor, count: Tensor, broken: Tensor, source: int) -> None:
    """Append new[b, :count[b]] to row b: the last of them is by ``source``, the rest by the SLM."""
    commit(
        state.tokens,
        state.length,
        state.done,
        state.source,
        state.broken,
        new,
        count,
        source,
        broken,
        state.limit,
        state.eos,
    )
