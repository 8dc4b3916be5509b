"""`uncertainty.py` compiled for a CPU: a row is read once for its sums, and once for its largest.

Sums of the vocabulary are of float32 by blocks, and of those in float64; all else is float64, as is
the digamma function: psi(x) = psi(x + n) - sum 1 / (x + i), shifted up to where its asymptotic
series holds (Abramowitz and Stegun 6.3.18), wrong by 1e-11 at most.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hybridgen.kernels.numba_utils import (
    ELEMENT,
    FAST,
    compact,
    exactly,
    exp,
    numbers_at,
    rows_of,
    wide,
)
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TEMPERATURE
from hybridgen.kernels.sampling_numba import draw, is_compiled, tell, truncated
from hybridgen.kernels.truncation_numba import bounded, in_order
from hybridgen.kernels.uncertainty import (
    ALEATORIC,
    ENTROPY,
    EPISTEMIC,
    FULL_LOGPROB,
    LOGPROB,
    MEASURES,
    PROBS,
    sample_measured_reference,
)

_INT, _FLOAT, _DOUBLE = np.int64(0), np.float32(0), np.float64(0)
_BLOCK = 128
_UNDERFLOW = np.float32(-1000)
_ASYMPTOTIC = 8.0


def sample_measured(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    k: int,
    evidence: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sample_measured_reference`."""
    if not is_compiled(logits, sampling):
        of = logits, sampling, seed, position, stream
        return sample_measured_reference(*of, k, evidence)
    rows, vocab = logits.shape
    token = seed.new_empty(rows)
    truncation, measures = (
        torch.empty(rows, width, dtype=torch.float32, device="cpu") for width in (3, MEASURES)
    )
    logits, sampling = compact(logits), sampling.contiguous()
    seed, position = seed.contiguous(), position.contiguous()
    _sample_measured(
        (*rows_of(logits), sampling.data_ptr(), seed.data_ptr(), position.data_ptr()),
        (token.data_ptr(), truncation.data_ptr(), measures.data_ptr()),
        (rows, vocab, min(k, vocab)),
        stream,
        evidence,
        ELEMENT[logits.dtype],
    )
    return token, truncation, measures


@exactly
def _sample_measured(
    read: Any,  # where logits [R, V] are and their stride, and where sampling float64 [R, 4],
    # seed and position int64 [R] are
    written: Any,  # where token [R], truncation float32 [R, 3] and measures [R, MEASURES] are
    sizes: Any,  # R, V, k
    stream: int,
    evidence: int,
    kind: Any,  # of the logits
) -> None:
    rows, vocab, k = sizes
    sampling = numbers_at(read[2], _DOUBLE, (rows, 4))
    seed, position = numbers_at(read[3], _INT, rows), numbers_at(read[4], _INT, rows)
    token, truncation = (
        numbers_at(written[0], _INT, rows),
        numbers_at(written[1], _FLOAT, (rows, 3)),
    )
    measures = numbers_at(written[2], _FLOAT, (rows, MEASURES))
    top, no_ids = np.empty(k, np.float32), np.empty(0, np.int64)
    for r in range(rows):
        row = numbers_at(read[0] + r * read[1], kind, vocab)
        numbers = truncated(row, sampling[r])
        tell(truncation[r], numbers)
        token[r] = draw(row, numbers, sampling[r], seed[r], position[r], stream)
        measures[r] = np.nan
        if numbers[LOG_Z] != numbers[LOG_Z]:
            continue
        below = np.float64(wide(row[token[r]])) - numbers[LARGEST]
        heat = sampling[r, TEMPERATURE]
        log_mass, entropy = spread(row, numbers[LARGEST])
        measures[r, LOGPROB] = below / bounded(heat) - numbers[LOG_Z] if heat > 0 else 0
        measures[r, FULL_LOGPROB] = below - log_mass
        measures[r, ENTROPY] = entropy
        if k > 0:
            in_order(row, top, no_ids)
            measures[r, ALEATORIC], measures[r, EPISTEMIC] = _logtoku(top, evidence)


@njit(error_model="numpy", fastmath=FAST)
def spread(row, largest):
    """log of the sum of exp(x - largest), and the entropy, of softmax(``row`` [V])."""
    mass = product = 0.0
    for first in range(0, len(row), _BLOCK):
        some = part = np.float32(0)
        for i in range(first, min(first + _BLOCK, len(row))):
            x = max(wide(row[i]) - largest, _UNDERFLOW)
            power = exp(x)
            some += power
            part += power * x
        mass += some
        product += part
    log_mass = np.log(mass)
    return log_mass, log_mass - product / mass


@njit(error_model="numpy")
def _logtoku(top, evidence):
    """AU and EU of the largest logits, ``top`` [k]."""
    k, total = len(top), 0.0
    for x in top:
        total += max(np.float64(x), 0.0)
    doubt = _relative_doubt(top) if evidence == PROBS else _aleatoric(top, total)
    return doubt, k / (total + k)


@njit(error_model="numpy")
def _relative_doubt(top):
    """AU of the probabilities of ``top`` [k], over its maximum."""
    k = len(top)
    if k == 1:
        return 0.0
    mass = spread = 0.0
    for x in top:
        mass += np.exp(np.float64(x) - top[0])
    for x in top:
        p = np.exp(np.float64(x) - top[0]) / mass
        spread += p * (_digamma(2.0) - _digamma(1 + p))
    most = _digamma(2.0) - _digamma(1 + 1 / k)
    return min(max(spread / most, 0.0), 1.0)


@njit(error_model="numpy")
def _aleatoric(top, total):
    """AU of logits as evidence, with this sum."""
    spread = 0.0
    if total > 0:
        for x in top:
            alpha = max(np.float64(x), 0.0)
            spread += alpha / total * (_digamma(total + 1) - _digamma(alpha + 1))
    return spread


@njit(error_model="numpy")
def _digamma(x):
    """psi of x >= 1."""
    below = 0.0
    while x < _ASYMPTOTIC:
        below += 1 / x
        x += 1
    y = 1 / (x * x)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    return np.log(x) - 0.5 / x - series - below
