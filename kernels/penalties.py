"""Penalties and biases: what transformers' logits processors do by sets of ids and the text so far.

Of a row's logits, with x the logit of an id in float32:

    x = logit + bias                 sequence_bias, bad_words_ids, suppress_tokens (of one token)
    x = x + early                    while the text is shorter than a minimum: min_new_tokens
    x = x * r if x < 0 else x / r    the ids in the text: repetition_penalty
    x = -inf                         the last ids of n-grams in the text: no_repeat_ngram_size

Keskar et al. 2019, "CTRL" (the penalty r); Paulus et al. 2017, "A Deep Reinforced Model for
Abstractive Summarization" (no n-gram twice). transformers adds its -inf of bad words, minimum and
suppressed tokens after the penalties; as r > 0, -inf stays -inf, so the order makes no difference.
"""

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.registry import define
from hybridgen.kernels.sampling import Floats, Integers


def penalize_reference(
    logits: Tensor,
    tokens: Tensor,
    start: Tensor,
    padding: Tensor,
    bias: Tensor,
    early: Tensor,
    minimum: Tensor,
    repetition: Tensor | None,
    ngram: Tensor | None,
) -> Tensor:
    """Biased and penalised ``logits``, float32 [B, M, V], contiguous.

    logits      [B, M, V] float32, bfloat16 or float16, any strides over B and M, rows dense. Column
                i of row b scores the token at position start[b] + i + 1 by the text before it,
                tokens[b, : start[b] + i + 1]
    tokens      int64 [B, T], rows dense; an id that is not in [0, V) has no logit and is skipped
    start       int64 [B]; where start + i + 1 is above T the text ends at T, and where it is
                negative there is none
    padding     int64 [B, 3]: how many tokens stand before position 0, and which (all the same id):
                part of every text of the row. And the position from which tokens count as repeated,
                below 0 where those before it do
    bias        float32 [V] or longer, added to every row
    early       float32 [V] or longer, added where start[b] + i + 1 < minimum[b]
    minimum     int64 [B]
    repetition  float32 [1], positive: an id that the text holds is penalised once, however often
                it stands there. None: no id is
    ngram       int64 [1], n >= 1: an id that would complete an n-gram which the text holds gets
                -inf; none does in a text of less than n tokens. None: no id does

    All are contiguous where no stride is named. NaN and infinities pass through as IEEE 754 says.
    """
    scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    vocab = logits.shape[2]
    torch.add(logits.detach(), bias[:vocab], out=scores)
    rows, texts, added = scores.numpy(), tokens.numpy(), early[:vocab].numpy()
    r = None if repetition is None else repetition.numpy()
    n = 0 if ngram is None else int(ngram)
    per_row = zip(rows, texts, start.tolist(), minimum.tolist(), padding.tolist(), strict=True)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for x, text, first, least, (pads, pad, counted) in per_row:
            # x[i] scores position first + 1 + i
            x[: max(least - first - 1, 0)] += added
            if r is None and not n:
                continue
            ends = np.arange(first + 1, first + 1 + len(x))
            ends = np.minimum(np.maximum(ends, 0), len(text)) + pads
            text = text[: ends[-1] - pads]
            if pads:
                text = np.concatenate((np.full(pads, pad), text))
            if r is not None:
                ignored = max(counted + pads, 0)
                _penalize(x, text[ignored:], ends - ignored, r)
            if 0 < n <= len(text):
                column, ids = _completions(text, ends, n)
                inside = _inside(ids, x)
                x[column[inside], ids[inside]] = -np.inf
    return scores


def _penalize(x: Floats, text: Integers, ends: Integers, r: Floats) -> None:
    """In x[i] [V], once each, the ids in text[:ends[i]]: all are read before any is written.

    An end below 0 is 0.
    """
    places = _inside(text, x)
    ids, counts = text[places], places.searchsorted(ends)
    values = x.take(ids, 1)
    values = np.where(values < 0, values * r, values / r)
    for column, count in enumerate(counts.tolist()):
        x[column, ids[:count]] = values[column, :count]


def _completions(text: Integers, ends: Integers, n: int) -> tuple[Integers, Integers]:
    """What followed the last n - 1 tokens of text[:ends[i]] where they stood before: i and ids."""
    same = np.arange(n - 1, len(text)) < ends[:, None]
    if n > 1:
        same &= text[n - 2 : -1] == text[ends - 1][:, None]
    column, place = same.nonzero()
    place += n - 1
    for back in range(2, n):
        if not len(place):
            break
        kept = text[place - back] == text[ends[column] - back]
        column, place = column[kept], place[kept]
    return column, text[place]


def _inside(ids: Integers, x: Floats) -> Integers:
    """Where the ids are that ``x`` [M, V] has logits of; as unsigned, a negative id is large."""
    return np.flatnonzero(ids.view(np.uint64) < x.shape[1])


def _penalize_fake(logits: Tensor, *_: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


penalize = define(
    "penalize(Tensor logits, Tensor tokens, Tensor start, Tensor padding, Tensor bias,"
    " Tensor early, Tensor minimum, Tensor? repetition, Tensor? ngram) -> Tensor",
    penalize_reference,
    _penalize_fake,
    "penalties_triton:penalize",
    "penalties_numba:penalize",
)
