"""How unsure a row of logits is: entropy, LogTokU, and both beside the draw."""

from typing import Any

import pytest
import torch
from conftest import Run
from harness import Case, copies
from peers import draw, filtered
from shapes import VOCAB, language_logits
from torch import Tensor

from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.uncertainty import PROBS, entropy, logtoku, sample_measured

FILTER = 0.6, 20, 0.95, 0.0
K = 10


def torch_entropy(logits: Tensor) -> Tensor:
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def torch_logtoku(logits: Tensor) -> tuple[Tensor, Tensor]:
    """AU of the candidates' probabilities over its maximum, and EU of their logits."""
    top = logits.float().topk(K).values
    alpha = top.softmax(-1)
    one, two = torch.digamma(torch.tensor([1 + 1 / K, 2], device=logits.device))
    spread = (alpha * (two - torch.digamma(alpha + 1))).sum(-1)
    return spread / (two - one), K / (top.clamp_min(0).sum(-1) + K)


def agree(result: Any, expected: Any) -> None:
    results, references = ([r] if isinstance(r, Tensor) else r for r in (result, expected))
    for got, wanted in zip(results, references, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("op", [entropy, logtoku, sample_measured], ids=lambda op: op.name)
def bench_uncertainty(run: Run, device: torch.device, op: Any, rows: int) -> None:
    def make(seed: int) -> tuple[Any, ...]:
        logits = language_logits(seed, rows, VOCAB, device=device)
        if op is entropy:
            return logits, torch.ones(rows, device=device)
        if op is logtoku:
            return logits, K, PROBS
        sampling = (
            torch.tensor([FILTER], dtype=torch.float64, device=device).expand(rows, 4).contiguous()
        )
        seeds = torch.arange(rows, device=device) + seed
        position = torch.full((rows,), 100, device=device)
        return logits, sampling, seeds, position, TARGET, K, PROBS

    inputs = copies(make, device)
    probabilities = filtered(*FILTER)

    def all_three(logits: Tensor) -> Any:
        token = draw(probabilities(logits))
        log_p = logits.float().log_softmax(-1).gather(1, token)
        return token, log_p, torch_entropy(logits), torch_logtoku(logits)

    compositions = {entropy: torch_entropy, logtoku: torch_logtoku, sample_measured: all_three}
    compose = compositions[op]
    run(
        Case(
            f"{op.name}, rows: {rows}",
            op,
            inputs,
            nbytes=inputs[0][0].nbytes,
            agree=agree,
            baselines={"torch": lambda i: compose(inputs[i][0])},
        )
    )
