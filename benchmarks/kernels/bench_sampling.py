"""From a row of logits to a token: the filters, the draw, its log-probability."""

from typing import Any

import pytest
import torch
from conftest import Run
from harness import Case, Target, copies
from peers import draw, filtered, flashinfer_draw, installed
from shapes import VOCAB, language_logits

from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import LOG_Z, sample

FILTERS = {  # temperature, top-k, top-p, min-p
    "top-k 20, top-p 0.95, min-p 0.05": (0.6, 20, 0.95, 0.05),
    "top-p 0.95": (0.6, 0, 0.95, 0.0),
    "no filter": (1.0, 0, 1.0, 0.0),
    "greedy": (0.0, 0, 1.0, 0.0),
}
ALL = next(iter(FILTERS))
CASES = [
    *((rows, ALL) for rows in (1, 4, 64)),
    *((rows, name) for name in list(FILTERS)[1:] for rows in (1, 64)),
]
TARGETS = {(1, ALL): Target(microseconds=12), (64, ALL): Target(microseconds=120)}


def agree(result: Any, expected: Any) -> None:
    """The same tokens, thresholds and maxima; log Z to float32's precision."""
    token, truncation = (value.cpu() for value in result)
    assert torch.equal(token, expected[0])
    assert torch.equal(truncation[:, :LOG_Z], expected[1][:, :LOG_Z])
    torch.testing.assert_close(truncation, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows, name", CASES)
def bench_sample(run: Run, device: torch.device, rows: int, name: str) -> None:
    parameters = FILTERS[name]

    def make(seed: int) -> tuple[Any, ...]:
        return (
            language_logits(seed, rows, VOCAB, device=device),
            torch.tensor([parameters], dtype=torch.float64, device=device)
            .expand(rows, 4)
            .contiguous(),
            torch.arange(rows, device=device) + seed,
            torch.full((rows,), 100, device=device),
            TARGET,
        )

    inputs = copies(make, device)
    flashinfer = installed("flashinfer", device)
    if parameters[0] == 0:
        composition, other = {"torch": lambda i: inputs[i][0].argmax(-1)}, {}
    else:
        probabilities = filtered(*parameters)
        composition = {"torch": lambda i: draw(probabilities(inputs[i][0]))}
        kernel = flashinfer_draw(flashinfer, *parameters) if flashinfer else None
        other = {"FlashInfer": (lambda i: kernel(inputs[i][0])) if kernel else None}
    run(
        Case(
            f"sample, rows: {rows}, {name}",
            sample,
            inputs,
            nbytes=inputs[0][0].nbytes,
            agree=agree,
            baselines={**composition, **other},
            target=TARGETS.get((rows, name)),
        )
    )
