"""`sampling.py` compiled for a CPU, row by row.

Truncations are the reference's to the bit, but for the last of log_z; noise is to an ulp or two of
its logarithms. A row's results depend on the row alone. float16, which numpy computes with and no
CPU does, is left to the reference.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hybridgen.kernels.numba_utils import ELEMENT, compact, exactly, numbers_at, rows_of, wide
from hybridgen.kernels.philox_numba import gumbel, gumbel_of, uniform
from hybridgen.kernels.sampling import (
    LARGEST,
    LOG_Z,
    MIN_P,
    TAU,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    filter_logits_reference,
    sample_into_reference,
)
from hybridgen.kernels.truncation_numba import bounded, truncate

BLOCK, FEW = 64, 8
_INT, _FLOAT, _DOUBLE = np.int64(0), np.float32(0), np.float64(0)


def filter_logits(logits: Tensor, sampling: Tensor) -> Tensor:
    """See `filter_logits_reference`."""
    if not is_compiled(logits, sampling):
        return filter_logits_reference(logits, sampling)
    truncation = torch.empty(logits.shape[0], 3, dtype=torch.float32, device="cpu")
    logits, sampling = compact(logits), sampling.contiguous()
    of = *rows_of(logits), sampling.data_ptr()
    _filter(of, truncation.data_ptr(), (*logits.shape,), ELEMENT[logits.dtype])
    return truncation


def sample(
    logits: Tensor, sampling: Tensor, seed: Tensor, position: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """See `sample_reference`."""
    token = seed.new_empty(logits.shape[0])
    truncation = torch.empty(logits.shape[0], 3, dtype=torch.float32, device="cpu")
    sample_into(logits, sampling, seed, position, stream, token, truncation, None)
    return token, truncation


def sample_into(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    token: Tensor,
    truncation: Tensor,
    kept: Tensor | None,
) -> None:
    """See `sample_into_reference`."""
    if not is_compiled(logits, sampling):
        of = sampling, seed, position, stream
        return sample_into_reference(logits, *of, token, truncation, kept)
    if kept is not None:
        kept.copy_(logits)
    logits, sampling = compact(logits), sampling.contiguous()
    seed, position = seed.contiguous(), position.contiguous()
    _sample(
        (*rows_of(logits), sampling.data_ptr(), seed.data_ptr(), position.data_ptr()),
        (token.data_ptr(), token.stride(0) * 8, *rows_of(truncation)),
        (*logits.shape,),
        stream,
        ELEMENT[logits.dtype],
    )


def is_compiled(logits: Tensor, sampling: Tensor) -> bool:
    """Whether rows of logits are sampled here; `TypeError` if ``sampling`` is not float64."""
    if sampling.dtype != torch.float64:
        raise TypeError(f"sampling must be float64, got {sampling.dtype}")
    return logits.dtype in (torch.float32, torch.bfloat16)


@exactly
def _filter(
    read: Any,  # where logits [R, V] are and their stride, and where sampling float64 [R, 4] is
    truncation: int,  # where float32 [R, 3] are
    sizes: Any,  # R, V
    kind: Any,  # of the logits
) -> None:
    rows, vocab = sizes
    sampling = numbers_at(read[2], _DOUBLE, (rows, 4))
    told = numbers_at(truncation, _FLOAT, (rows, 3))
    for r in range(rows):
        row = numbers_at(read[0] + r * read[1], kind, vocab)
        tell(told[r], truncated(row, sampling[r]))


@exactly
def _sample(
    read: Any,  # where logits [R, V] are and their stride, and where sampling float64 [R, 4],
    # seed and position int64 [R] are
    written: Any,  # where token int64 [R] and truncation float32 [R, 3] are, each with its stride
    sizes: Any,  # R, V
    stream: int,
    kind: Any,  # of the logits
) -> None:
    rows, vocab = sizes
    sampling = numbers_at(read[2], _DOUBLE, (rows, 4))
    seed, position = numbers_at(read[3], _INT, rows), numbers_at(read[4], _INT, rows)
    for r in range(rows):
        row = numbers_at(read[0] + r * read[1], kind, vocab)
        numbers = truncated(row, sampling[r])
        tell(numbers_at(written[2] + r * written[3], _FLOAT, 3), numbers)
        token = numbers_at(written[0] + r * written[1], _INT, 1)
        token[0] = draw(row, numbers, sampling[r], seed[r], position[r], stream)


@njit(error_model="numpy")
def truncated(row, sampling):
    """tau, max and log_z of ``row`` [V] under ``sampling`` [4]."""
    return truncate(row, sampling[TEMPERATURE], sampling[TOP_K], sampling[TOP_P], sampling[MIN_P])


@njit(error_model="numpy")
def tell(truncation, numbers):
    """Write the three ``numbers`` to ``truncation`` [3]."""
    truncation[TAU], truncation[LARGEST], truncation[LOG_Z] = numbers


@njit(error_model="numpy")
def draw(row, truncation, sampling, seed, position, stream):
    """A token of ``row`` under its three numbers; 0 of a broken row."""
    tau, largest, log_z = truncation
    if log_z != log_z:
        return 0
    if not sampling[TEMPERATURE] > 0:
        return first_equal(row, largest)
    temperature = bounded(sampling[TEMPERATURE])
    noise = np.empty(BLOCK, np.float32)
    best, token = -np.inf, 0
    for first in range(0, len(row), BLOCK):
        last = min(first + BLOCK, len(row))
        count = kept_of(row, tau, first, last)
        if count == 0:
            continue
        if count > FEW:
            noise_of_all(first, last, seed, position, stream, noise)
        for i in range(first, last):
            x = wide(row[i])
            if x >= tau:
                own = noise[i - first] if count > FEW else gumbel(seed, position, i, stream)
                score = (np.float64(x) - largest) / temperature + own
                if score > best:
                    best, token = score, i
    return token


@njit(error_model="numpy")
def first_equal(row, x):
    """The first place of ``x`` in ``row``, which has it."""
    for first in range(0, len(row), BLOCK):
        last, count = min(first + BLOCK, len(row)), 0
        for i in range(first, last):
            count += wide(row[i]) == x
        if count > 0:
            break
    i = first
    while wide(row[i]) != x:
        i += 1
    return i


@njit(error_model="numpy", inline="always")
def kept_of(row, tau, first, last):
    """How many of the tokens from ``first`` to ``last`` are not below ``tau``."""
    count = 0
    for i in range(first, last):
        count += wide(row[i]) >= tau
    return count


@njit(error_model="numpy", inline="always")
def noise_of_all(first, last, seed, position, stream, noise):
    """Noise of the tokens from ``first`` to ``last``: of more than `FEW` of a block it is as quick
    to compute it for all, for a loop without a condition makes vectors."""
    for i in range(first, last):
        noise[i - first] = uniform(seed, position, i, stream)
    for i in range(len(noise)):
        noise[i] = gumbel_of(noise[i])
