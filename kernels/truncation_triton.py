"""The three numbers that make a row of logits a distribution (see `sampling`), in Triton."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.candidates_triton import Logits
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU

_TAU = tl.constexpr(TAU)
_LARGEST = tl.constexpr(LARGEST)
_LOG_Z = tl.constexpr(LOG_Z)


@triton.jit
def store_truncation(truncation_ptr, tau, largest, log_z):
    """Write the three numbers of a row."""
    tl.store(truncation_ptr + _TAU, tau)
    tl.store(truncation_ptr + _LARGEST, largest)
    tl.store(truncation_ptr + _LOG_Z, log_z)


@triton.jit
def load_truncation(truncation_ptr, row):
    """tau, max and log Z of a row."""
    truncation_ptr += row * 3
    return (
        tl.load(truncation_ptr + _TAU),
        tl.load(truncation_ptr + _LARGEST),
        tl.load(truncation_ptr + _LOG_Z),
    )


@triton.jit
def load_truncations(truncation_ptr, row, mask):
    """The same of rows, zeros outside ``mask``."""
    truncation_ptr += row * 3
    return (
        tl.load(truncation_ptr + _TAU, mask=mask, other=0.0),
        tl.load(truncation_ptr + _LARGEST, mask=mask, other=0.0),
        tl.load(truncation_ptr + _LOG_Z, mask=mask, other=0.0),
    )


class Drawn(NamedTuple):
    """A token and the truncation that it was drawn by, of each row; rows of any stride."""

    token: Tensor  # int64 [rows]
    truncation: Tensor  # float32 [rows, 3]

    @classmethod
    def empty(cls, logits: Logits) -> "Drawn":
        device = logits.tensor.device
        return cls(
            torch.empty(logits.rows, dtype=torch.int64, device=device),
            torch.empty(logits.rows, 3, dtype=torch.float32, device=device),
        )
