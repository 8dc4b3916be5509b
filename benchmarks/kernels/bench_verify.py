"""From the LLM's logits of K + 1 positions to the tokens that stand."""

from typing import Any

import pytest
import torch
from conftest import Run
from harness import Case, Target, copies
from peers import coupled, filtered, rejection
from shapes import VOCAB, language_logits, normal

from hybridgen.kernels.sampling import filter_logits
from hybridgen.kernels.verify import verify_coupled, verify_rejection

DRAFTS = 4
FILTER = 0.6, 20, 0.95, 0.0


def agree(result: Any, expected: Any) -> None:
    """The same verdict: tokens up to the count, the count, and no broken row."""
    tokens, count, broken = (value.cpu() for value in result)
    assert torch.equal(count, expected[1])
    assert torch.equal(broken, expected[2]) and not broken.any()
    stands = torch.arange(tokens.shape[1]) < count[:, None]
    assert torch.equal(tokens[stands], expected[0][stands])


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("op", [verify_coupled, verify_rejection], ids=lambda op: op.name)
def bench_verify(run: Run, device: torch.device, op: Any, rows: int) -> None:
    def make(seed: int) -> tuple[Any, ...]:
        target = language_logits(seed, rows, DRAFTS + 1, VOCAB, device=device)
        noise = normal(seed, rows, DRAFTS, VOCAB, device=device) / 4
        draft = target[:, :DRAFTS] + noise
        drafts = draft.argmax(-1)
        sampling = (
            torch.tensor([FILTER], dtype=torch.float64, device=device).expand(rows, 4).contiguous()
        )
        draws = torch.arange(rows, device=device) + seed, torch.full((rows,), 100, device=device)
        if op is verify_coupled:
            return target, drafts, sampling, *draws
        every = sampling.repeat_interleave(DRAFTS, 0)
        truncation = filter_logits(draft.view(-1, VOCAB), every).view(rows, DRAFTS, 3)
        return target, draft, drafts, truncation, sampling, *draws

    inputs = copies(make, device)
    distribution = filtered(*FILTER)

    def compose(i: int) -> Any:
        if op is verify_coupled:
            return coupled(distribution, inputs[i][0], inputs[i][1])
        return rejection(distribution, *inputs[i][:3])

    # Of the draft, rejection reads the one row whose token it rejected.
    draft_bytes = 0 if op is verify_coupled else inputs[0][1].nbytes // DRAFTS
    run(
        Case(
            f"{op.name}, {DRAFTS} drafts, rows: {rows}",
            op,
            inputs,
            nbytes=inputs[0][0].nbytes + draft_bytes,
            agree=agree,
            baselines={"torch": compose},
            target=Target(microseconds=20) if rows == 1 else None,
        )
    )
