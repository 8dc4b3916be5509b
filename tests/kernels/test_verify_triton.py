"""Verification and commit by Triton: the reference's verdict, its law, whatever the batch.

Numbers in brackets are those of a list of faults that other verifiers had. The interpreter takes
about as long for each column of logits, so blocks are no larger than what they show.
"""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near_ties import explained
from on_device import launch, move
from sampling_oracle import ACCEPTABLE, filtered, p_value
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridgen.kernels.philox import DRAFT
from hybridgen.kernels.sampling import LOG_Z, filter_logits, sample
from hybridgen.kernels.verify import (
    HEAD,
    SOURCE_LLM,
    SOURCE_LOOKUP,
    SOURCE_SLM,
    WINDOW,
    commit,
    verify_coupled,
    verify_rejection,
)

pytestmark = pytest.mark.usefixtures("references")

INF, NAN = float("inf"), float("nan")
OFF = (1.0, 0, 1.0, 0.0)
GREEDY = (0.0, 0, 1.0, 0.0)
QWEN = (0.6, 20, 0.95, 0.0)
MIXED = [QWEN, GREEDY, OFF, (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 5, 0.9, 0.05)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Block(NamedTuple):
    """Arguments of `verify_rejection`, the drafts drawn from the draft's own distributions."""

    target: Tensor  # [B, K + 1, V]
    draft: Tensor  # [B, K, V']
    drafts: Tensor  # [B, K]
    truncation: Tensor
    sampling: Tensor
    seed: Tensor
    length: Tensor

    @property
    def coupled(self) -> tuple[Tensor, ...]:
        return self.target, self.drafts, self.sampling, self.seed, self.length


def block(
    batch: int,
    num_drafts: int,
    vocab: int,
    draft_vocab: int,
    params: list[tuple],
    dtype: torch.dtype = torch.float32,
    distance: float = 1.0,
    seed: int = 0,
) -> Block:
    """A draft that is ``distance`` standard deviations from the target."""
    generator = torch.Generator().manual_seed(seed)
    widest = max(vocab, draft_vocab)
    logits = torch.randn(batch, num_drafts + 1, widest, generator=generator) * 2
    noise = torch.randn(batch, num_drafts, widest, generator=generator) * distance
    target = logits[..., :vocab].to(dtype)
    draft = (logits[:, :num_drafts] + noise)[..., :draft_vocab].to(dtype)
    row = torch.arange(batch)
    sampling = torch.tensor(params, dtype=torch.float64)[row % len(params)]
    return drawn(target, draft, sampling, 11 + row, 3 + 7 * row)


def drawn(target: Tensor, draft: Tensor, sampling: Tensor, seed: Tensor, length: Tensor) -> Block:
    batch, num_drafts, _ = draft.shape
    drafts = torch.zeros(batch, num_drafts, dtype=torch.int64)
    truncation = torch.zeros(batch, num_drafts, 3)
    for i in range(num_drafts):
        drafts[:, i], truncation[:, i] = sample(draft[:, i], sampling, seed, length + i, DRAFT)
    return Block(target, draft, drafts, truncation, sampling, seed, length)


def assert_same(actual: tuple, expected: tuple) -> None:
    """The verdicts, and the tokens that stand."""
    (tokens, count, broken), (plain, plain_count, plain_broken) = actual, expected
    assert torch.equal(count, plain_count) and torch.equal(broken, plain_broken)
    stands = torch.arange(tokens.shape[1]) < count[:, None]
    assert torch.equal(tokens * stands, plain * stands)


def assert_judged(device: torch.device, b: Block, clamp: bool = False) -> None:
    """Both verdicts are the reference's, on a GPU up to near ties."""
    coupled = b._replace(drafts=b.drafts.clamp_max(b.target.shape[2] - 1)) if clamp else b
    for op, case, arguments in (
        (verify_rejection, b, b),
        (verify_coupled, coupled, coupled.coupled),
    ):
        actual, expected = launch(op, device, *arguments), op(*arguments)
        if device.type == "cuda":
            assert explained(actual, expected, case, op is verify_rejection).all()
        else:
            assert_same(actual, expected)


def assert_ids(tokens: Tensor, vocab: int) -> None:
    assert ((tokens >= 0) & (tokens < vocab)).all()


# Against the reference


@settings(max_examples=15)
@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.sampled_from([(30, 30), (30, 24), (30, 37), (1100, 1040)]),
    st.lists(st.sampled_from(MIXED), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.integers(0, 2**31),
)
def test_judges_as_the_reference_does(
    device: torch.device,
    batch: int,
    num_drafts: int,
    vocabs: tuple[int, int],
    params: list[tuple],
    dtype: torch.dtype,
    distance: float,
    seed: int,
) -> None:
    b = block(batch, num_drafts, *vocabs, params, dtype, distance, seed)
    assert_judged(device, b, clamp=True)


@pytest.mark.parametrize("temperature", [1e-45, 1e-8, 1e-7, 1e-5, 1e4])
def test_judges_as_the_reference_does_at_every_temperature(
    device: torch.device, temperature: float
) -> None:
    """Of equals, of logits an ulp apart, and of those whose differences are beyond float32."""
    b = block(8, 2, 20, 20, [(temperature, 0, 1.0, 0.0)], distance=0.7)
    levels = torch.tensor([0, 1, -3e4, 0]).repeat(2)[:, None, None]
    steps = torch.tensor([1, 2.0**-23, 0.5, 3e37]).repeat(2)[:, None, None]
    target, draft = (levels + logits.round() * steps for logits in (b.target, b.draft))
    case = drawn(target, draft, b.sampling, b.seed, b.length)
    result = launch(verify_rejection, device, *case)
    assert_same(result, verify_rejection(*case))
    assert not result[2].any()


def test_all_numbers_of_accepted_drafts_occur(device: torch.device) -> None:
    """So that the comparison above is one of every branch."""
    b = block(8, 3, 40, 40, [QWEN, OFF], distance=0.7, seed=2)
    result = launch(verify_rejection, device, *b)
    assert_same(result, verify_rejection(*b))
    assert set(result[1].tolist()) == {1, 2, 3, 4}


def test_greedy_accepts_the_argmax_and_nothing_else(device: torch.device) -> None:
    b = block(6, 2, 40, 40, [GREEDY], distance=1.0)
    tokens, count, _ = launch(verify_rejection, device, *b)
    assert_same((tokens, count, torch.zeros(6, dtype=torch.bool)), verify_rejection(*b))
    assert len(set(count.tolist())) > 2
    chosen = b.target.argmax(2)
    for row, n in enumerate(count.tolist()):
        assert tokens[row, :n].tolist() == chosen[row, :n].tolist()


@pytest.mark.parametrize("params", [QWEN, OFF, (1.0, 0, 0.9, 0.0), GREEDY], ids=str)
def test_rows_whose_draw_needs_the_whole_vocabulary(device: torch.device, params: tuple) -> None:
    b = block(2, 1, 2100, 2100, [params], distance=0.3)
    assert_judged(device, b)


@pytest.mark.parametrize("params", [QWEN, OFF, GREEDY], ids=str)
def test_either_tells_what_made_the_rows_distributions(device: torch.device, params: tuple) -> None:
    """As `filter_logits` does, by the kernels and by the reference; the verdict stays."""
    b = block(2, 2, 300, 280, [params], distance=0.7)
    plain = filter_logits(b.target.flatten(0, 1), b.sampling.repeat_interleave(3, 0))
    for op, case in ((verify_rejection, b), (verify_coupled, b.coupled)):
        told, kept = torch.full((2, 3, 3), NAN), move(torch.full((2, 3, 3), NAN), device)
        expected = op(*case, told)
        moved = [move(argument, device) for argument in case]
        found = op.launcher()(*moved, kept) if device.type == "cpu" else op(*moved, kept)
        assert_same(tuple(result.cpu() for result in found), expected)
        assert_same(expected, op(*case))
        assert torch.equal(told.view(-1, 3), plain)
        np.testing.assert_allclose(kept.cpu(), told, rtol=2.0**-23)


def test_strided_arguments(device: torch.device) -> None:
    """[22] Drafts as columns of a wider block, logits of a padded vocabulary."""
    b = block(3, 3, 50, 44, MIXED[:3])
    wide = torch.full((3, 4, 61), NAN)
    wide[..., 4:54] = b.target
    columns = torch.cat([torch.zeros(3, 1, dtype=torch.int64), b.drafts], 1)
    draft = torch.full((3, 5, 50), NAN)
    draft[:, 1:4, 2:46] = b.draft
    strided = b._replace(target=wide[..., 4:54], drafts=columns[:, 1:], draft=draft[:, 1:4, 2:46])
    assert_same(launch(verify_rejection, device, *strided), verify_rejection(*b))
    assert_same(launch(verify_coupled, device, *strided.coupled), verify_coupled(*b.coupled))


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that gets memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage(a) for a in args if isinstance(a, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = isinstance(result, Tensor) and not any(result is a for a in args)
        if made and storage(result) not in given:
            self.sizes.append(result.untyped_storage().nbytes())
        return result


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def test_views_of_larger_buffers_are_read_where_they_are(device: torch.device) -> None:
    """[22] Buffers for more drafts than there are; no copy is made, and nothing beyond is read."""
    b = Block(*(t.contiguous() for t in block(3, 2, 16, 14, [OFF, QWEN], distance=1.5, seed=1)))
    most = 6
    drafts = torch.full((3, most + 1), 2**40)
    drafts[:, 1:3] = b.drafts
    draft = torch.full((most, 3, 21), NAN)
    draft[:2, :, :14] = b.draft.transpose(0, 1)
    truncation = torch.full((3, most, 3), NAN)
    truncation[:, :2] = b.truncation
    views = b._replace(
        drafts=drafts[:, 1:3],
        draft=draft.transpose(0, 1)[:, :2, :14],
        truncation=truncation[:, :2],
    )
    made = []
    for case in (b, views):
        assert_same(launch(verify_rejection, device, *case), verify_rejection(*b))
        moved = [move(tensor, device) for tensor in case]
        with Allocations() as allocations:
            verify_rejection.launcher()(*moved)
        made.append(allocations.sizes)
    assert made[0] == made[1] and sum(made[0]) > 0


def test_a_row_keeps_its_verdict_in_any_batch(device: torch.device) -> None:
    """[14, 19, 30] Permuted, beside rows of NaN, and alone."""
    b = block(6, 2, 60, 60, MIXED, distance=0.5)
    tokens, count, _ = launch(verify_rejection, device, *b)
    order = torch.tensor([0, 4, 2, 0, 5, 1, 3, 0])
    moved = b._replace(**{name: x[order] for name, x in b._asdict().items()})
    moved.target[[0, 3, 7]] = NAN
    beside = launch(verify_rejection, device, *moved)
    whole = [1, 2, 4, 5, 6]
    assert torch.equal(beside[0][whole], tokens[order[whole]])
    assert torch.equal(beside[1][whole], count[order[whole]])
    assert beside[2].tolist() == [row in (0, 3, 7) for row in range(8)]
    for row in (0, 3):
        alone = launch(verify_rejection, device, *(x[row : row + 1] for x in b))
        assert torch.equal(alone[0], tokens[row : row + 1]) and alone[1] == count[row]


# Faults


def test_a_rejected_draft_is_not_emitted_when_q_is_nan(device: torch.device) -> None:
    """[6] The token comes from p instead, from all of it: not only from what q never drew."""
    b = block(10, 1, 12, 12, [OFF, (1.0, 5, 1.0, 0.0)])
    b.truncation[..., LOG_Z] = NAN
    result = launch(verify_rejection, device, *b)
    assert_same(result, verify_rejection(*b))
    assert (result[1] == 1).all() and len(set(result[0][:, 0].tolist())) > 3


def test_a_draft_of_probability_0_is_never_accepted(device: torch.device) -> None:
    """[7, 8, 12] Whatever u is; and what p does not keep is not drawn in its place either."""
    b = block(16, 1, 12, 12, [(1.0, 3, 1.0, 0.0)], distance=4.0)
    target = b.target.clone()
    target[torch.arange(16), 0, b.drafts[:, 0]] = -INF
    result = launch(verify_rejection, device, *b._replace(target=target))
    assert_same(result, verify_rejection(*b._replace(target=target)))
    assert (result[1] == 1).all()
    kept = target[:, 0] >= target[:, 0].sort(descending=True).values[:, 2:3]
    assert kept[torch.arange(16), result[0][:, 0]].all()


def test_a_draft_of_tiny_probability_is_compared_and_not_divided_by(device: torch.device) -> None:
    """q = 1e-40: u * q < p says accept, p / q would be infinite."""
    target, draft = torch.zeros(1, 2, 4), torch.tensor([[[0.0, -92.0, -95.0, -95.0]]])
    row = torch.zeros(1, dtype=torch.int64)
    b = Block(
        target,
        draft,
        torch.tensor([[1]]),
        torch.tensor([[[-95.0, 0.0, 0.1]]]),
        torch.tensor([OFF], dtype=torch.float64),
        row,
        row,
    )
    result = launch(verify_rejection, device, *b)
    assert_same(result, verify_rejection(*b))
    assert result[1] == 2


def test_equal_distributions_accept_everything_and_leave_no_residual(device: torch.device) -> None:
    """Where p = q the residual has no mass, and rounding must not make one."""
    b = block(6, 2, 50, 50, MIXED, distance=0.0)
    result = launch(verify_rejection, device, *b)
    assert_same(result, verify_rejection(*b))
    assert (result[1] == 3).all()


def test_a_broken_row_counts_only_where_it_is_read(device: torch.device) -> None:
    """[5, 27] And every id stays one of the vocabulary. A column of each row is broken."""
    faults = [*product((NAN, INF, -INF), (0, 1, 2)), (0.0, 0)]
    b = block(len(faults), 2, 20, 20, MIXED, distance=0.2, seed=15)
    for row, (value, column) in enumerate(faults[:-1]):
        b.target[row, column] = value
    for op, arguments in ((verify_rejection, b), (verify_coupled, b.coupled)):
        result = launch(op, device, *arguments)
        assert_same(result, op(*arguments))
        assert_ids(result[0], 20)
        found = {column for (_, column), broken in zip(faults, result[2], strict=True) if broken}
        assert found == {0, 1, 2} and not result[2][-1]


def test_emitted_tokens_follow_the_target(device: torch.device) -> None:
    """[1, 2, 3, 29] The law of the first token, one draft drawn anew each time: chi-square.

    Few are interpreted: those are the reference's tokens, whose law `test_verify_rejection` has.
    """
    count = 24 if device.type == "cpu" else 100_000
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(1, 2, 6, generator=generator).expand(count, -1, -1)
    draft = torch.randn(1, 1, 6, generator=generator).expand(count, -1, -1)
    sampling = torch.tensor([(0.8, 4, 0.95, 0.0)], dtype=torch.float64).expand(count, -1)
    b = drawn(target, draft, sampling, torch.full((count,), 3), torch.arange(count) * 2)
    result = launch(verify_rejection, device, *b)
    if device.type == "cpu":
        assert_same(result, verify_rejection(*b))
        return
    law = filtered(target[0, 0].tolist(), *sampling[0].tolist())
    assert p_value(np.bincount(result[0][:, 0].numpy(), minlength=6), law) > ACCEPTABLE


# Commit


@settings(max_examples=40)
@given(st.data(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 16]))
def test_commits_as_the_reference_does(
    device: torch.device, data: st.DataObject, batch: int, width: int, ends: int
) -> None:
    def integers(low: int, high: int, *shape: int) -> Tensor:
        size = int(np.prod(shape))
        values = data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        return torch.tensor(values).reshape(shape)

    length = integers(24, 36, batch)  # the report's places wrap at 32
    truncations = torch.zeros(batch, 18, 3)
    # of no draft, of one, or of what is beyond them
    truncations[torch.arange(batch), integers(-1, width, batch), LOG_Z] = torch.nan
    state = (
        integers(0, 5, batch, 44),
        length,
        integers(0, 1, batch).bool(),
        integers(0, 3, batch, HEAD + WINDOW),
    )
    read = (
        integers(0, 5, batch, width + 1)[:, 1:],
        data.draw(st.sampled_from([None, integers(0, width, batch), integers(0, 1, batch).bool()])),
        data.draw(st.sampled_from([SOURCE_SLM, SOURCE_LLM])),
        data.draw(st.sampled_from([SOURCE_SLM, SOURCE_LOOKUP])),
        data.draw(st.sampled_from([None, integers(0, 1, batch).bool()])),
        length + integers(0, 6, batch),
        integers(-1, 5, batch, ends),
        data.draw(st.sampled_from([None, truncations[:, 0], truncations[:, :width]])),
    )
    expected = [x.clone() for x in state]
    commit(*expected, *read)
    actual = [move(x, device) for x in state]
    moved = [move(x, device) if isinstance(x, Tensor) else x for x in read]
    commit.launcher()(*actual, *moved)
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got.cpu(), want)
