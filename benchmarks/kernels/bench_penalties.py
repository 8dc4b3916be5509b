"""Biases and penalties of the rows of a draft step, and of a verification."""

from typing import Any

import pytest
import torch
from conftest import Run
from harness import Case, copies
from shapes import VOCAB, language_logits
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from hybridgen.kernels.penalties import penalize

TEXT, ROOM = 500, 2048  # tokens of the text, and that it has room for
PENALTY, NGRAM = 1.1, 3


def agree(result: Any, expected: Any) -> None:
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("columns", [1, 5], ids=["a step", "a verification"])
@pytest.mark.parametrize("asked", ["bias", "repetition", "repetition and n-grams"])
def bench_penalize(run: Run, device: torch.device, asked: str, columns: int, rows: int) -> None:
    bias, early = torch.zeros(VOCAB, device=device), torch.zeros(VOCAB, device=device)
    bias[:100] = -1.0
    padding = torch.tensor([[0, 0, -1]], device=device).expand(rows, 3).contiguous()
    minimum = torch.zeros(rows, dtype=torch.int64, device=device)
    repetition = None if asked == "bias" else torch.full((1,), PENALTY, device=device)
    ngram = (
        torch.full((1,), NGRAM, dtype=torch.int64, device=device) if "n-grams" in asked else None
    )

    def make(seed: int) -> tuple[Any, ...]:
        logits = language_logits(seed, rows * columns, VOCAB, device=device)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(VOCAB, (rows, ROOM), generator=generator).to(device)
        start = torch.full((rows,), TEXT - 1, device=device)
        parts = logits.view(rows, columns, VOCAB), tokens, start, padding
        return *parts, bias, early, minimum, repetition, ngram

    processors = LogitsProcessorList()
    if repetition is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(PENALTY))
    if ngram is not None:
        processors.append(NoRepeatNGramLogitsProcessor(NGRAM))
    inputs = copies(make, device)
    can_be_captured = ngram is None or device.type == "cpu"  # n-grams are looked for on the host

    def theirs(i: int) -> list[Tensor]:
        """Column by column: transformers' processors know one text a row."""
        logits, tokens = inputs[i][:2]
        columns = enumerate((logits.float() + bias).unbind(1))
        return [processors(tokens[:, : TEXT + k], x) for k, x in columns]

    run(
        Case(
            f"penalize, {asked}, rows: {rows}, columns: {columns}",
            penalize,
            inputs,
            nbytes=inputs[0][0].nbytes + 4 * inputs[0][0].numel(),
            agree=agree,
            baselines={"transformers": theirs} if can_be_captured else {},
        )
    )
