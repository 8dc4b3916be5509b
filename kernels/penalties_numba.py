"""`penalties.py` compiled for a CPU: a pass over the logits, and one over the text a penalty.

A repeated id is penalised by its logit as it was given, so that twice is once.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hybridgen.kernels.numba_utils import ELEMENT, compact, exactly, numbers_at, rows_of, wide

_INT, _FLOAT = np.int64(0), np.float32(0)
_INF = np.float32(np.inf)


def penalize(
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
    """See `penalize_reference`."""
    if logits.dtype not in (torch.float32, torch.bfloat16):
        logits = logits.float()
    logits, tokens = compact(logits), compact(tokens)
    scores = torch.empty(logits.shape, dtype=torch.float32, device="cpu")
    _penalize(
        rows_of(logits),
        (*rows_of(tokens), start.data_ptr(), padding.data_ptr(), minimum.data_ptr()),
        (
            bias.data_ptr(),
            early.data_ptr(),
            0 if repetition is None else repetition.data_ptr(),
            0 if ngram is None else ngram.data_ptr(),
        ),
        scores.data_ptr(),
        (*logits.shape, tokens.shape[1]),
        ELEMENT[logits.dtype],
    )
    return scores


@exactly
def _penalize(
    logits: Any,  # where they are [B, M, V], and their strides
    texts: Any,  # where tokens [B, T] are and their stride, start [B], padding [B, 3], minimum [B]
    added: Any,  # where bias [V] and early [V] are; repetition and ngram [1], or 0
    written: int,  # where scores float32 [B, M, V] are
    sizes: Any,  # B, M, V, T
    kind: Any,  # of the logits
) -> None:
    batch, columns, vocab, width = sizes
    start, minimum = numbers_at(texts[2], _INT, batch), numbers_at(texts[4], _INT, batch)
    padding = numbers_at(texts[3], _INT, (batch, 3))
    bias, early = numbers_at(added[0], _FLOAT, vocab), numbers_at(added[1], _FLOAT, vocab)
    scores = numbers_at(written, _FLOAT, (batch, columns, vocab))
    for b in range(batch):
        text = numbers_at(texts[0] + b * texts[1], _INT, width)
        pads, pad, counted = padding[b]
        for c in range(columns):
            row = numbers_at(logits[0] + b * logits[1] + c * logits[2], kind, vocab)
            x, position = scores[b, c], start[b] + c + 1
            end = min(max(position, 0), width)
            is_early = position < minimum[b]
            for i in range(vocab):
                x[i] = wide(row[i]) + bias[i]
            if is_early:
                for i in range(vocab):
                    x[i] += early[i]
            if added[2] != 0:
                r = numbers_at(added[2], _FLOAT, 1)[0]
                for place in range(max(counted, -pads), end):
                    token = pad if place < 0 else text[place]
                    if 0 <= token < vocab:
                        value = wide(row[token]) + bias[token]
                        if is_early:
                            value += early[token]
                        x[token] = value * r if value < 0 else value / r
            if added[3] != 0:
                _complete(x, text, end, pads, pad, numbers_at(added[3], _INT, 1)[0])


@njit(error_model="numpy")
def _complete(x, text, end, pads, pad, n):
    """-inf in ``x`` [V] to what followed the last n - 1 of pads times ``pad`` and text[:end]."""
    for place in range(n - 1 - pads, end):
        back = 1
        while back < n and _at(text, place - back, pad) == _at(text, end - back, pad):
            back += 1
        token = _at(text, place, pad)
        if back == n and 0 <= token < len(x):
            x[token] = -_INF


@njit(error_model="numpy", inline="always")
def _at(text, place, pad):
    """The token of a text at this place, which has ``pad`` in front of its first."""
    return pad if place < 0 else text[place]
