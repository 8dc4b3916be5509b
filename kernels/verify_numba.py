"""`verify.py` compiled for a CPU, row by row, of each row no more than is read.

The LLM's rows after the first rejection are left alone, unless their truncations are asked for.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hybridgen.kernels.numba_utils import array, exactly, rows_of, wide
from hybridgen.kernels.philox import ACCEPT, RESIDUAL, TARGET
from hybridgen.kernels.philox_numba import uniform
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU, TEMPERATURE
from hybridgen.kernels.sampling_numba import (
    BLOCK,
    draw,
    is_compiled,
    noise_of_kept,
    tell,
    truncated,
)
from hybridgen.kernels.truncation_numba import bounded
from hybridgen.kernels.verify import Verdict, verify_coupled_reference, verify_rejection_reference


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
    verdict, given = _asked(target_logits, drafts, sampling, seed, length, target_truncation)
    _coupled(*given)
    return verdict


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
    verdict, given = _asked(target_logits, drafts, sampling, seed, length, target_truncation)
    if drafts.shape[1]:
        rows = rows_of(draft_logits.flatten(0, 1))
        _rejection(*rows, draft_logits.shape[2], array(draft_truncation), *given)
    else:
        _coupled(*given)
    return verdict


def _asked(
    logits: Tensor,
    drafts: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    truncation: Tensor | None,
) -> tuple[Verdict, Any]:
    """A verdict, and what `_coupled` takes to write it."""
    batch, columns, vocab = logits.shape
    tokens, count = drafts.new_zeros(batch, columns), length.new_empty(batch)
    broken = torch.empty(batch, dtype=torch.bool, device="cpu")
    every = truncation is not None
    if truncation is None:
        truncation = torch.empty(batch, columns, 3, dtype=torch.float32, device="cpu")
    read = array(drafts), array(sampling), array(seed), array(length), every
    written = tokens.numpy(), count.numpy(), broken.numpy(), truncation.numpy()
    return (tokens, count, broken), (*rows_of(logits.flatten(0, 1)), vocab, *read, *written)


@exactly
def _coupled(
    rows: Any,  # [B * (K + 1), V] of this stride
    stride: int,
    vocab: int,
    drafts: Any,  # int64 [B, K]
    sampling: Any,  # float64 [B, 4]
    seed: Any,  # int64 [B]
    length: Any,
    every: bool,  # the truncations of all rows are asked for
    tokens: Any,  # int64 [B, K + 1], zeros
    count: Any,  # int64 [B]
    broken: Any,  # bool [B]
    truncation: Any,  # float32 [B, K + 1, 3]
) -> None:
    batch, columns = tokens.shape
    for b in range(batch):
        broken[b], stands = False, True
        for c in range(columns):
            if not (stands or every):
                break
            at = (b * columns + c) * stride
            row = rows[at : at + vocab]
            numbers = truncated(row, sampling[b])
            tell(truncation[b, c], numbers)
            if stands:
                choice = draw(row, numbers, sampling[b], seed[b], length[b] + c, TARGET)
                tokens[b, c], count[b] = choice, c + 1
                broken[b] |= numbers[LOG_Z] != numbers[LOG_Z]
                stands = c < columns - 1 and choice == drafts[b, c]


@exactly
def _rejection(
    draft_rows: Any,  # [B * K, V'] of this stride
    draft_stride: int,
    draft_vocab: int,
    draft_truncation: Any,  # float32 [B, K, 3]
    rows: Any,  # from here on as `_coupled` takes it
    stride: int,
    vocab: int,
    drafts: Any,
    sampling: Any,
    seed: Any,
    length: Any,
    every: bool,
    tokens: Any,
    count: Any,
    broken: Any,
    truncation: Any,
) -> None:
    batch, columns = tokens.shape
    for b in range(batch):
        broken[b], stands = False, True
        for c in range(columns):
            if not (stands or every):
                break
            at = (b * columns + c) * stride
            row = rows[at : at + vocab]
            p = truncated(row, sampling[b])
            tell(truncation[b, c], p)
            if not stands:
                continue
            who = sampling[b], seed[b], length[b] + c
            count[b] = c + 1
            broken[b] |= p[LOG_Z] != p[LOG_Z]
            if c == columns - 1:
                tokens[b, c] = draw(row, p, *who, TARGET)
                continue
            at = (b * (columns - 1) + c) * draft_stride
            draft_row, told = draft_rows[at : at + draft_vocab], draft_truncation[b, c]
            q = told[TAU], told[LARGEST], told[LOG_Z]
            tokens[b, c], stands = _judge(row, p, draft_row, q, drafts[b, c], *who)


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
        if not noise_of_kept(row, p[0], first, last, seed, position, RESIDUAL, noise):
            continue
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
                score = np.log(more) + noise[i - first]
                if score > best:
                    best, token = score, i
    return token if mass < np.inf else -1
