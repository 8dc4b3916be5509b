"""`verify.py` compiled for a CPU, row by row, of each row no more than is read.

The LLM's rows after the first rejection are left alone, unless their truncations are asked for.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hybridgen.kernels.numba_utils import ELEMENT, compact, exactly, numbers_at, rows_of, wide
from hybridgen.kernels.philox import ACCEPT, RESIDUAL, TARGET
from hybridgen.kernels.philox_numba import gumbel, uniform
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU, TEMPERATURE
from hybridgen.kernels.sampling_numba import (
    BLOCK,
    FEW,
    draw,
    is_compiled,
    kept_of,
    noise_of_all,
    tell,
    truncated,
)
from hybridgen.kernels.truncation_numba import bounded
from hybridgen.kernels.verify import Verdict, verify_coupled_reference, verify_rejection_reference

_INT, _FLOAT, _DOUBLE, _BYTE = np.int64(0), np.float32(0), np.float64(0), np.uint8(0)


def verify_coupled(
    target_logits: Tensor,
    drafts: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    """See `verify_coupled_reference`."""
    if not is_compiled(target_logits, sampling):
        of = drafts, sampling, seed, length
        return verify_coupled_reference(target_logits, *of, target_truncation)
    how = sampling, seed, length
    return _verdict((), target_logits, drafts, how, target_truncation)


def verify_rejection(
    target_logits: Tensor,
    draft_logits: Tensor,
    drafts: Tensor,
    draft_truncation: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    """See `verify_rejection_reference`."""
    if not (is_compiled(target_logits, sampling) and is_compiled(draft_logits, sampling)):
        of = drafts, draft_truncation, sampling, seed, length
        return verify_rejection_reference(target_logits, draft_logits, *of, target_truncation)
    proposed = (draft_logits, draft_truncation) if drafts.shape[1] else ()
    return _verdict(proposed, target_logits, drafts, (sampling, seed, length), target_truncation)


def _verdict(
    proposed: tuple[Tensor, ...],
    logits: Tensor,
    drafts: Tensor,
    how: tuple[Tensor, ...],
    truncation: Tensor | None,
) -> Verdict:
    """By rejection of what was ``proposed``, its logits and truncations; of nothing by coupling."""
    batch, columns, vocab = logits.shape
    verdict = (
        drafts.new_zeros(batch, columns),
        drafts.new_empty(batch),
        torch.empty(batch, dtype=torch.bool, device="cpu"),
    )
    logits, drafts, how = compact(logits), compact(drafts), tuple(x.contiguous() for x in how)
    places = [x.data_ptr() for x in (*how, *verdict)]
    truncations = (0, 0, 0) if truncation is None else rows_of(truncation)
    given = (
        (*rows_of(logits), *rows_of(drafts), *places, *truncations),
        (batch, columns, vocab),
        ELEMENT[logits.dtype],
    )
    if not proposed:
        _coupled(*given)
        return verdict
    draft_logits, draft_truncation = compact(proposed[0]), compact(proposed[1])
    of = *rows_of(draft_logits), draft_logits.shape[2], *rows_of(draft_truncation)
    _rejection(of, ELEMENT[draft_logits.dtype], *given)
    return verdict


_LOGITS, _DRAFTS, _SAMPLING, _SEED, _LENGTH = 0, 3, 5, 6, 7
_TOKENS, _COUNT, _BROKEN, _TRUNCATION = 8, 9, 10, 11
"""What `_coupled` is told of places: strides follow where there are any. Logits [B, K + 1, V],
drafts int64 [B, K], sampling float64 [B, 4], seed and length int64 [B]; to be written are tokens
int64 [B, K + 1], which are zeros, count int64 [B], broken bool [B], and truncations float32
[B, K + 1, 3] of all rows, or 0 where nobody asks for them."""


@exactly
def _coupled(
    at: Any,  # see above
    sizes: Any,  # B, K + 1, V
    kind: Any,  # of the logits
) -> None:
    batch, columns, vocab = sizes
    sampling, seed, length, tokens, count, broken = _arrays(at, batch, columns)
    every = at[_TRUNCATION] != 0
    for b in range(batch):
        broken[b], stands = False, True
        drafts = numbers_at(at[_DRAFTS] + b * at[_DRAFTS + 1], _INT, columns - 1)
        for c in range(columns):
            if not (stands or every):
                break
            row = _row(at, b, c, kind, vocab)
            numbers = truncated(row, sampling[b])
            if every:
                tell(_told(at, b, c), numbers)
            if stands:
                choice = draw(row, numbers, sampling[b], seed[b], length[b] + c, TARGET)
                tokens[b, c], count[b] = choice, c + 1
                broken[b] |= numbers[LOG_Z] != numbers[LOG_Z]
                stands = c < columns - 1 and choice == drafts[c]


@exactly
def _rejection(
    of: Any,  # where draft logits [B, K, V'] are, strides, V', and where their truncations are,
    # float32 [B, K, 3], strides
    draft_kind: Any,  # of the draft logits
    at: Any,  # from here on as `_coupled` takes it
    sizes: Any,
    kind: Any,
) -> None:
    batch, columns, vocab = sizes
    sampling, seed, length, tokens, count, broken = _arrays(at, batch, columns)
    every = at[_TRUNCATION] != 0
    for b in range(batch):
        broken[b], stands = False, True
        drafts = numbers_at(at[_DRAFTS] + b * at[_DRAFTS + 1], _INT, columns - 1)
        for c in range(columns):
            if not (stands or every):
                break
            row = _row(at, b, c, kind, vocab)
            p = truncated(row, sampling[b])
            if every:
                tell(_told(at, b, c), p)
            if not stands:
                continue
            who = sampling[b], seed[b], length[b] + c
            count[b] = c + 1
            broken[b] |= p[LOG_Z] != p[LOG_Z]
            if c == columns - 1:
                tokens[b, c] = draw(row, p, *who, TARGET)
                continue
            draft_row = numbers_at(of[0] + b * of[1] + c * of[2], draft_kind, of[3])
            told = numbers_at(of[4] + b * of[5] + c * of[6], _FLOAT, 3)
            q = told[TAU], told[LARGEST], told[LOG_Z]
            tokens[b, c], stands = _judge(row, p, draft_row, q, drafts[c], *who)


@njit(error_model="numpy")
def _arrays(at, batch, columns):
    """Sampling, seed, length, tokens, count and broken."""
    return (
        numbers_at(at[_SAMPLING], _DOUBLE, (batch, 4)),
        numbers_at(at[_SEED], _INT, batch),
        numbers_at(at[_LENGTH], _INT, batch),
        numbers_at(at[_TOKENS], _INT, (batch, columns)),
        numbers_at(at[_COUNT], _INT, batch),
        numbers_at(at[_BROKEN], _BYTE, batch),
    )


@njit(error_model="numpy", inline="always")
def _row(at, b, c, kind, vocab):
    """The LLM's logits of one column."""
    return numbers_at(at[_LOGITS] + b * at[_LOGITS + 1] + c * at[_LOGITS + 2], kind, vocab)


@njit(error_model="numpy")
def _told(at, b, c):
    """Where the truncation of one column is to be written."""
    return numbers_at(
        at[_TRUNCATION] + b * at[_TRUNCATION + 1] + c * at[_TRUNCATION + 2], _FLOAT, 3
    )


@njit(error_model="numpy")
def _judge(row, p, draft_row, q, draft, sampling, seed, position):
    """``draft`` or the token in its place, and whether the draft is accepted."""
    if not sampling[TEMPERATURE] > 0:
        token = draw(row, p, sampling, seed, position, TARGET)
        return token, token == draft
    temperature = bounded(sampling[TEMPERATURE])
    p_x = _probability(_at(row, draft), p, temperature)
    q_x = _probability(_at(draft_row, draft), q, temperature)
    u = uniform(seed, position, 0, ACCEPT)
    if u * q_x < p_x and p_x > 0:
        return draft, True
    token = _residual(row, p, draft_row, q, temperature, seed, position)
    if token < 0:
        token = draw(row, p, sampling, seed, position, RESIDUAL)
    return token, False


@njit(error_model="numpy")
def _at(row, token):
    return wide(row[token]) if token < len(row) else np.float32(-np.inf)


@njit(error_model="numpy")
def _probability(logit, truncation, temperature):
    """exp((logit - max) / T - log_z) where the logit is kept, else 0; NaN where log_z is."""
    tau, largest, log_z = truncation
    if logit < tau:
        return 0.0
    return np.exp((np.float64(logit) - largest) / temperature - log_z)


@njit(error_model="numpy")
def _residual(row, p, draft_row, q, temperature, seed, position):
    """A token drawn from max(p - q, 0); -1 where that has no mass, or none that is a number."""
    noise = np.empty(BLOCK, np.float32)
    best, token, mass = -np.inf, -1, 0.0
    for first in range(0, len(row), BLOCK):
        last = min(first + BLOCK, len(row))
        count = kept_of(row, p[0], first, last)
        if count == 0:
            continue
        if count > FEW:
            noise_of_all(first, last, seed, position, RESIDUAL, noise)
        for i in range(first, last):
            x = wide(row[i])
            if x < p[0]:
                continue
            more = _probability(x, p, temperature)
            more -= _probability(_at(draft_row, i), q, temperature)
            if more != more:
                return -1
            if more > 0:
                mass += more
                own = noise[i - first] if count > FEW else gumbel(seed, position, i, RESIDUAL)
                score = np.log(more) + own
                if score > best:
                    best, token = score, i
    return token if mass < np.inf else -1
