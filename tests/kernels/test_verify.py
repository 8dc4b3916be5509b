"""Verification in either mode: rows alone, broken rows, greedy; coupled, the LLM's own tokens.

The law of rejection has a file of its own.
"""

import pytest
import torch
from torch import Tensor
from verify_rounds import GREEDY, INF, NAN, PLAIN, SAMPLINGS, Round, draft, world

from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import sample

# Both modes


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
def test_trap_4_inputs_are_not_written(mode: str) -> None:
    case = draft(world(), 3, 50)
    before = Round(*(field.clone() for field in case))
    getattr(case, mode)()
    assert all(torch.equal(a, b) for a, b in zip(before, case, strict=True))


def mixed(rows: int = 12, drafts: int = 3, vocab: int = 40) -> Round:
    """Every kind of filter side by side, greedy rows among them."""
    generator = torch.Generator().manual_seed(9)
    target = torch.randn(rows, drafts + 1, vocab, generator=generator) * 2
    logits = target[:, :drafts] + 0.4 * torch.randn(rows, drafts, vocab, generator=generator)
    kinds = [*SAMPLINGS, GREEDY, (0.6, 20, 0.95, 0.0)]
    sampling = torch.tensor([kinds[i % len(kinds)] for i in range(rows)], dtype=torch.float64)
    seed, length = torch.arange(rows) * 31, torch.arange(rows) + 5
    steps = [sample(logits[:, i], sampling, seed, length + i, DRAFT) for i in range(drafts)]
    drawn, truncation = (torch.stack(x, 1) for x in zip(*steps, strict=True))
    return Round(target, logits, drawn, truncation, sampling, seed, length)


def emitted(result: tuple[Tensor, Tensor, Tensor]) -> list[list[int]]:
    tokens, count, _ = result
    return [row[:n] for row, n in zip(tokens.tolist(), count.tolist(), strict=True)]


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
def test_trap_19_a_row_is_the_same_in_any_batch_and_order(mode: str) -> None:
    case = mixed()
    together = emitted(getattr(case, mode)())
    for i in range(len(together)):
        assert emitted(getattr(case.rows(torch.tensor([i])), mode)()) == [together[i]]
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    permuted = emitted(getattr(case.rows(order), mode)())
    assert permuted == [together[i] for i in order]


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_broken_rows_are_flagged_where_they_are_read(mode: str, value: float) -> None:
    """In the LLM's row at column j: only if the round got there; the rows beside are untouched."""
    case = mixed()
    clean = emitted(getattr(case, mode)())
    for column in range(4):
        target = case.target_logits.clone()
        target[1::2, column] = value
        damaged = case._replace(target_logits=target)
        tokens, _, broken = getattr(damaged, mode)()
        assert tokens.min() >= 0 and tokens.max() < 40
        assert emitted(getattr(damaged, mode)())[::2] == clean[::2]
        reached = [i % 2 == 1 and len(row) > column for i, row in enumerate(clean)]
        assert broken.tolist() == reached


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
@pytest.mark.parametrize("sampling", [GREEDY, PLAIN, (0.6, 20, 0.95, 0.0)], ids=str)
def test_no_drafts_is_a_plain_step(mode: str, sampling: tuple) -> None:
    case = draft(world(vocab=9), 0, 20, sampling)
    tokens, count, _ = getattr(case, mode)()
    alone = sample(case.target_logits[:, 0], *case[4:], TARGET)[0]
    assert tokens.shape == (20, 1) and torch.equal(tokens[:, 0], alone) and (count == 1).all()


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
def test_greedy_accepts_the_leading_argmaxes(mode: str) -> None:
    """Count, by the first draft that is not the argmax; then the argmax itself."""
    target = torch.nn.functional.one_hot(torch.tensor([[3, 1, 4, 1]]), 6).float().expand(4, -1, -1)
    drafts = torch.tensor([[3, 1, 4], [3, 1, 0], [3, 0, 4], [0, 1, 4]])
    case = Round(
        target,
        torch.zeros(4, 3, 6),
        drafts,
        torch.zeros(4, 3, 3),
        torch.tensor([GREEDY], dtype=torch.float64).expand(4, -1),
        torch.arange(4),
        torch.arange(4),
    )
    assert emitted(getattr(case, mode)()) == [[3, 1, 4, 1], [3, 1, 4], [3, 1], [3]]
    # Beside a sampled row greedy rows take another way to the same end.
    mixture = torch.tensor([GREEDY, GREEDY, GREEDY, PLAIN], dtype=torch.float64)
    beside = case._replace(sampling=mixture)
    assert emitted(getattr(beside, mode)())[:3] == [[3, 1, 4, 1], [3, 1, 4], [3, 1]]


def test_greedy_takes_the_first_of_equals() -> None:
    target = torch.tensor([[[0.0, 2, 2, 1], [5, 5, 5, 5]]]).expand(2, -1, -1)
    case = Round(
        target,
        torch.zeros(2, 1, 4),
        torch.tensor([[1], [2]]),
        torch.zeros(2, 1, 3),
        torch.tensor([GREEDY, GREEDY], dtype=torch.float64),
        torch.arange(2),
        torch.arange(2),
    )
    for result in (case.rejection(), case.coupled()):
        assert emitted(result) == [[1, 0], [1]]


def test_greedy_takes_the_first_of_equals_beside_a_sampled_row() -> None:
    """Also where the draft favours the first of them: nothing is taken off for that."""
    target = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5]]]).expand(2, -1, -1)
    case = Round(
        target,
        torch.tensor([[[4.0, 0, 0, 0]]]).expand(2, -1, -1),
        torch.tensor([[2], [2]]),
        torch.zeros(2, 1, 3),
        torch.tensor([GREEDY, PLAIN], dtype=torch.float64),
        torch.arange(2),
        torch.arange(2),
    )
    for result in (case.rejection(), case.coupled()):
        assert emitted(result)[0] == [0]


# Coupled


@pytest.mark.parametrize("sampling", [*SAMPLINGS, GREEDY], ids=str)
def test_coupled_tokens_are_the_llms_own_whatever_is_drafted(sampling: tuple) -> None:
    """Good drafts, random drafts, constant drafts, drafts beyond the vocabulary: one text."""
    models = world(vocab=12, noise=0.5, seed=6)
    rows, drafts = 40, 4
    params = torch.tensor([sampling], dtype=torch.float64).expand(rows, -1)
    seed, text = torch.arange(rows), [torch.zeros(rows, dtype=torch.int64)]
    for i in range(drafts + 1):  # the LLM alone
        position = torch.full((rows,), 10 + i)
        text.append(sample(models.llm[text[-1]], params, seed, position, TARGET)[0])
    alone = torch.stack(text[1:], 1)

    good = draft(models, drafts, rows, sampling, stream=TARGET)
    generator = torch.Generator().manual_seed(1)
    for proposal in (
        good.drafts,
        alone[:, :-1],
        torch.randint(0, 12, (rows, drafts), generator=generator),
        torch.full((rows, drafts), 7),
        torch.full((rows, drafts), 99),
    ):
        read = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), proposal.clamp_max(11)], 1)
        case = good._replace(drafts=proposal, target_logits=models.llm[read])
        for row, expected in zip(emitted(case.coupled()), alone.tolist(), strict=True):
            assert row == expected[: len(row)]
    assert (good._replace(drafts=alone[:, :-1]).coupled()[1] >= 1).all()


def test_coupled_accepts_exactly_the_leading_matches() -> None:
    case = draft(world(vocab=12, noise=0.5, seed=6), 4, 200, stream=TARGET)
    tokens, count, broken = case.coupled()
    match = (tokens[:, :-1] == case.drafts).long()
    assert torch.equal(count, match.cumprod(1).sum(1) + 1)
    assert len(set(count.tolist())) > 2 and not broken.any()


def test_coupled_rejection_and_sample_share_the_last_token() -> None:
    """After K acceptances the next token is `sample` on TARGET in both modes."""
    case = draft(world(vocab=50, noise=0.0), 2, 300, (0.6, 20, 0.95, 0.0))
    tokens, count, _ = case.rejection()
    assert (count == 3).all()
    last = sample(case.target_logits[:, 2], case.sampling, case.seed, case.length + 2, TARGET)[0]
    assert torch.equal(tokens[:, 2], last)
