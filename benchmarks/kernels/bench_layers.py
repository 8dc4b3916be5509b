"""What stands before the first layer, and the norm where it is a launch of its own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from harness import Case, close, copies
from shapes import normal
from torch import Tensor

from hybridgen.kernels.layers import embed, normalize

VOCAB, POSITIONS, DIM = 16384, 4096, 128
EPS = 1e-6


def equal(result: Any, expected: Any) -> None:
    assert all(torch.equal(a.cpu(), b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("hidden", [256, 4096])
@pytest.mark.parametrize("rows", [1, 5])
def bench_embed(run: Run, device: torch.device, rows: int, hidden: int) -> None:
    """One token of each of ``rows`` rows."""
    embedding = normal(0, VOCAB, hidden, device=device)
    rope = normal(1, 2, POSITIONS, 1, DIM, device=device).float()

    def make(seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        tokens = torch.randint(VOCAB, (rows, 1), generator=generator, device=device)
        start = torch.randint(POSITIONS, (rows,), generator=generator, device=device)
        return tokens, start, embedding, rope

    inputs = [make(seed) for seed in range(64)]

    def composition(i: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens, start, table, angles = inputs[i]
        cos, sin = angles.index_select(1, start)
        return F.embedding(tokens.view(-1), table), cos, sin

    moved = 2 * rows * (2 * hidden + 2 * 4 * DIM)  # read and written
    run(
        Case(
            f"embed, rows: {rows} of {hidden}",
            embed,
            inputs,
            nbytes=moved,
            agree=equal,
            baselines={"torch": composition},
        )
    )


@pytest.mark.parametrize("hidden", [256, 4096])
@pytest.mark.parametrize("rows", [1, 128])
def bench_rms_norm(run: Run, device: torch.device, rows: int, hidden: int) -> None:
    def make(seed: int) -> tuple[Any, ...]:
        x = normal(seed, rows, hidden, device=device)
        return x, torch.ones(hidden, dtype=x.dtype, device=device), EPS

    inputs = copies(make, device)
    run(
        Case(
            f"rms_norm, rows: {rows} of {hidden}",
            normalize,
            inputs,
            nbytes=2 * inputs[0][0].nbytes + inputs[0][1].nbytes,
            agree=close,
            baselines={"torch": lambda i: F.rms_norm(inputs[i][0], (hidden,), inputs[i][1], EPS)},
        )
    )
