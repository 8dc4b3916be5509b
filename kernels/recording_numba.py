"""`recording.py` compiled for a CPU.

What is measured is put aside first, and measured many at a time: between two steps of a model
nothing of it is in a cache, neither what it computes with nor its code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hybridgen.kernels.numba_utils import (
    ELEMENT,
    compact,
    compiled,
    exactly,
    numbers_at,
    rows_of,
    wide,
)
from hybridgen.kernels.recording import DRAWN, JUDGED, KEPT, TOKEN, Measured
from hybridgen.kernels.truncation_numba import in_order
from hybridgen.kernels.uncertainty_numba import spread

_INT, _FLOAT = np.int64(0), np.float32(0)


class Aside(NamedTuple):
    """What `recording.measure` is told, as it was: logits that nobody writes to any more [B, M, V],
    and of each of the B rows where its tokens start and how long its text is."""

    logits: Tensor
    start: list[int]
    length: list[int]
    drafted: bool


def put_aside(logits: Tensor, start: Tensor, length: Tensor, drafted: bool) -> Aside:
    """For `measure`, which is told what `recording.measure` is."""
    return Aside(logits, start.tolist(), length.tolist(), drafted)


def measure(held: Sequence[Aside], measured: Measured) -> None:
    """`recording.measure`, of all that is ``held``, one after the other, of one vocabulary."""
    table, read = [], [_read(each.logits) for each in held]
    for logits, (_, starts, lengths, drafted) in zip(read, held, strict=True):
        address, step, column = rows_of(logits)
        columns = logits.shape[1]
        for b, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            table.append((address + b * step, column, columns, b, start, length, drafted))
    batch, _, vocab = read[0].shape
    _measure(
        np.array(table, dtype=np.int64),
        tuple(buffer.data_ptr() for buffer in measured),
        (batch, vocab, *measured.top.shape),
        ELEMENT[read[0].dtype],
    )


def keep_drafts(
    kept: Tensor,
    start: Tensor,
    tokens: Tensor,
    drawn: Sequence[Tensor],
    draft_truncation: Tensor,
    logits: Tensor,
    truncation: Tensor,
) -> None:
    """See `hybridgen.kernels.recording.keep_drafts`."""
    start, tokens, logits = start.contiguous(), compact(tokens), _read(logits)
    drawn = [_read(each) for each in drawn]
    like = drawn[0] if drawn else logits
    _keep_drafts(
        kept.data_ptr(),
        (start.data_ptr(), *rows_of(tokens), *rows_of(draft_truncation), *rows_of(truncation)),
        np.array([each.data_ptr() for each in drawn], dtype=np.int64),
        rows_of(logits),
        (*tokens.shape, kept.shape[1], logits.shape[2], rows_of(like)[1], like.shape[-1]),
        (ELEMENT[logits.dtype], ELEMENT[like.dtype]),
    )


def _read(logits: Tensor) -> Tensor:
    """As they are, or in a dtype that is compiled for."""
    if logits.dtype not in (torch.float32, torch.bfloat16):
        logits = logits.float()
    return compact(logits)


@compiled
def _measure(
    table: Any,  # int64 [N, 7]: where a row's logits are, the stride of its columns in bytes, how
    # many they are, which row it is, where its tokens start, how long its text is, drafted
    written: Any,  # where the buffers of `Measured` are
    sizes: Any,  # B, V, places, k
    kind: Any,  # of the logits
) -> None:
    batch, vocab, places, k = sizes
    positions = places // batch
    top = numbers_at(written[0], _FLOAT, (places, k))
    ids = numbers_at(written[1], _INT, (places, k))
    logprob = numbers_at(written[2], _FLOAT, places)
    negentropy = numbers_at(written[3], _FLOAT, places)
    then = numbers_at(written[4], _INT, places)
    for n in range(len(table)):
        address, column, columns, b, start, length, drafted = table[n]
        for c in range(columns):
            position = start + 1 + c
            at = b * positions + position
            if not 0 < position < positions or then[at] >= position:
                continue
            if position > length and not drafted:
                continue
            row = numbers_at(address + c * column, kind, vocab)
            in_order(row, top[at], ids[at])
            log_mass, entropy = spread(row, top[at, 0])
            logprob[at], negentropy[at], then[at] = -log_mass, -entropy, length


@exactly
def _keep_drafts(
    kept: int,  # where that is
    told: Any,  # where start [B] is, and tokens and both truncations with their strides
    drawn: Any,  # int64 [K] or [0]: where the logits of each draft are
    logits: Any,  # where those of the LLM are, with their strides
    sizes: Any,  # B, K, T, V; of drawn logits their stride in bytes, and V'
    kinds: Any,  # of the LLM's logits, and of those
) -> None:
    batch, count, positions, vocab, step, draft_vocab = sizes
    start = numbers_at(told[0], _INT, batch)
    drafts = numbers_at(kept, _FLOAT, (batch, positions, KEPT))
    for b in range(batch):
        tokens = numbers_at(told[1] + b * told[2], _INT, count)
        for c in range(count):
            position, token = start[b] + c, tokens[c]
            if not 0 <= position < positions:
                continue
            draft = drafts[b, position]
            draft[TOKEN], draft[DRAWN:JUDGED] = token, np.nan
            if len(drawn) > 0:
                row = numbers_at(drawn[c] + b * step, kinds[1], draft_vocab)
                draft[DRAWN] = wide(row[token])
                _copy(told[3] + b * told[4] + c * told[5], draft[DRAWN + 1 : JUDGED])
            row = numbers_at(logits[0] + b * logits[1] + c * logits[2], kinds[0], vocab)
            draft[JUDGED] = wide(row[min(token, vocab - 1)])
            _copy(told[6] + b * told[7] + c * told[8], draft[JUDGED + 1 :])


@njit(error_model="numpy")
def _copy(truncation, written):
    """The three numbers that are there."""
    numbers = numbers_at(truncation, _FLOAT, len(written))
    for i in range(len(written)):
        written[i] = numbers[i]
