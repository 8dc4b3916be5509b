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

from hybridgen.kernels.numba_utils import array, exactly, rows_of, wide
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
    sample_reference,
)
from hybridgen.kernels.truncation_numba import bounded, truncate

BLOCK, _FEW = 64, 8


def filter_logits(logits: Tensor, sampling: Tensor) -> Tensor:
    """See `filter_logits_reference`."""
    if not is_compiled(logits, sampling):
        return filter_logits_reference(logits, sampling)
    truncation = torch.empty(logits.shape[0], 3, dtype=torch.float32, device="cpu")
    _filter(*rows_of(logits), logits.shape[1], array(sampling), truncation.numpy())
    return truncation


def sample(
    logits: Tensor, sampling: Tensor, seed: Tensor, position: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """See `sample_reference`."""
    if not is_compiled(logits, sampling):
        return sample_reference(logits, sampling, seed, position, stream)
    token = seed.new_empty(logits.shape[0])
    truncation = torch.empty(logits.shape[0], 3, dtype=torch.float32, device="cpu")
    of = array(sampling), array(seed), array(position), stream
    _sample(*rows_of(logits), logits.shape[1], *of, token.numpy(), truncation.numpy())
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
    drawn, of = sample(logits, sampling, seed, position, stream)
    token.copy_(drawn)
    truncation.copy_(of)
    if kept is not None:
        kept.copy_(logits)


def is_compiled(logits: Tensor, sampling: Tensor) -> bool:
    """Whether rows of logits are sampled here; `TypeError` if ``sampling`` is not float64."""
    if sampling.dtype != torch.float64:
        raise TypeError(f"sampling must be float64, got {sampling.dtype}")
    return logits.dtype in (torch.float32, torch.bfloat16)


@exactly
def _filter(rows: Any, stride: int, vocab: int, sampling: Any, truncation: Any) -> None:
    for r in range(len(sampling)):
        row = rows[r * stride : r * stride + vocab]
        tell(truncation[r], truncated(row, sampling[r]))


@exactly
def _sample(
    rows: Any,  # [R, V] of this stride
    stride: int,
    vocab: int,
    sampling: Any,  # float64 [R, 4]
    seed: Any,  # int64 [R]
    position: Any,
    stream: int,
    token: Any,
    truncation: Any,  # float32 [R, 3]
) -> None:
    for r in range(len(sampling)):
        row = rows[r * stride : r * stride + vocab]
        numbers = truncated(row, sampling[r])
        tell(truncation[r], numbers)
        token[r] = draw(row, numbers, sampling[r], seed[r], position[r], stream)


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
        if not noise_of_kept(row, tau, first, last, seed, position, stream, noise):
            continue
        for i in range(first, last):
            x = wide(row[i])
            if x >= tau:
                score = (np.float64(x) - largest) / temperature + noise[i - first]
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


@njit(error_model="numpy")
def noise_of_kept(row, tau, first, last, seed, position, stream, noise):
    """Noise of the tokens from ``first`` to ``last`` that are not below ``tau``, if any is.

    Of many it is as quick to compute it for all: a loop without a condition makes vectors.
    """
    count = 0
    for i in range(first, last):
        count += wide(row[i]) >= tau
    if count > _FEW:
        for i in range(first, last):
            noise[i - first] = uniform(seed, position, i, stream)
        for i in range(len(noise)):
            noise[i] = gumbel_of(noise[i])
    elif count > 0:
        for i in range(first, last):
            if wide(row[i]) >= tau:
                noise[i - first] = gumbel(seed, position, i, stream)
    return count > 0
