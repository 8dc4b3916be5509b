"""Settings and rows of logits for the tests of filtering and sampling, and the law of a filter."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import LOG_Z, TAU, filter_logits

INF = float("inf")
OFF = (1.0, 0, 1.0, 0.0)
GREEDY = (0.0, 0, 1.0, 0.0)
QWEN = (0.6, 20, 0.95, 0.0)
MIXED = [
    QWEN,
    GREEDY,
    OFF,
    (0.7, 3, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.9, 50, 0.9, 0.05),
    (2.0, 1000, 0.99, 0.0),
]


def rows_of(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def params_of(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def probabilities(logits: Tensor, sampling: Tensor) -> np.ndarray:
    """p [R, V] in float64 as `filter_logits` defines it, of a truncation; not for greedy rows."""
    tau, largest, log_z = filter_logits(logits, sampling).double().t().unsqueeze(2)
    x = logits.double()
    p = torch.exp((x - largest) / sampling[:, :1] - log_z)
    return ((x >= tau) * p).numpy()


def tau_of(logits: Tensor, sampling: Any) -> Tensor:
    """The lowest kept logit of each row, [R]."""
    return filter_logits(logits, params_of(sampling).expand(len(logits), -1))[:, TAU]


def random_logits(rows: int, vocab: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def arguments(logits: Tensor, params: Any, stream: int = TARGET) -> tuple:
    """Of `sample`; ``params`` are cycled over the rows, which differ in seed and position."""
    row = torch.arange(len(logits))
    return logits, params_of(*params)[row % len(params)], 7 + row, 3 * row, stream


def assert_same(actual: tuple, expected: tuple) -> None:
    """Tokens exactly, and truncations as below."""
    assert torch.equal(actual[0], expected[0])
    assert_same_truncation(actual[1], expected[1])


def assert_same_truncation(actual: Tensor, expected: Tensor) -> None:
    """tau and max exactly; log_z to a bit: its logarithm is another library's."""
    assert torch.equal(actual[:, :LOG_Z], expected[:, :LOG_Z])
    np.testing.assert_allclose(actual[:, LOG_Z], expected[:, LOG_Z], rtol=2.0**-23, atol=2.0**-24)
