"""A near tie explains that two devices disagree; nothing else does."""

import numpy as np
import pytest
import torch
from near_ties import explained, noise, settled
from test_verify_triton import Block, block

from hybridgen.kernels.philox import ACCEPT, TARGET, uniform
from hybridgen.kernels.sampling import sample
from hybridgen.kernels.verify import verify_coupled, verify_rejection

pytestmark = pytest.mark.usefixtures("references")

OFF = (1.0, 0, 1.0, 0.0)


def tied(apart: float) -> tuple:
    """Arguments of `sample` in which tokens 0 and 1 tie but for ``apart``, far above the others."""
    logits = torch.full((1, 8), -50.0)
    added = noise(5, 9, [0, 1], TARGET)
    logits[0, :2] = torch.from_numpy(-added + [0, apart])
    row = torch.zeros(1, dtype=torch.int64)
    return logits, torch.tensor([OFF], dtype=torch.float64), row + 5, row + 9, TARGET


def test_draws_are_settled_between_near_ties_alone() -> None:
    for apart, expected in ((1e-6, True), (-1e-6, True), (1e-3, False)):
        given = tied(apart)
        token, _ = sample(*given)
        other = 1 - token
        assert torch.equal(settled(other, token, given), token if expected else other)
        assert torch.equal(settled(token, token, given), token)
    given = tied(1e-6)
    greedy = given[0], given[1] * 0, *given[2:]
    token, _ = sample(*greedy)
    assert torch.equal(settled(1 - token, token, greedy), 1 - token)


def differing(b: Block, rejection: bool, scale: float) -> tuple:
    """The verdicts on ``b`` and on the same with logits ``scale`` off, and which are explained."""
    op = verify_rejection if rejection else verify_coupled
    generator = torch.Generator().manual_seed(1)
    off = b._replace(target=b.target + scale * torch.randn(b.target.shape, generator=generator))
    ours, theirs = (op(*(c if rejection else c.coupled)) for c in (off, b))
    same = explained(ours, theirs, b, rejection)
    equal = (ours[1] == theirs[1]) & (ours[0] == theirs[0]).all(1)
    return same, equal


def test_verdicts_differ_without_a_near_tie_only_if_something_is_wrong() -> None:
    b = block(400, 3, 30, 30, [OFF, (0.8, 10, 0.9, 0.0)], distance=0.7)
    for rejection in (True, False):
        same, equal = differing(b, rejection, 0.0)
        assert same.all() and equal.all()
        same, equal = differing(b, rejection, 0.3)
        assert np.mean((~same).numpy()) > 0.1 and same[equal].all()


def test_the_choice_between_accepting_and_rejecting_may_be_a_near_tie() -> None:
    """The draft's probability is moved to where u * q = p, and a hair to either side of it."""
    b = block(200, 1, 12, 12, [OFF], distance=0.7)
    checked = 0
    for row in range(200):
        for hair, expected in ((1e-6, True), (1e-2, False)):
            verdicts = []
            for side in (-hair, hair):
                verdicts.append(verify_rejection(*at_the_edge(b, row, side)))
            ours, theirs = verdicts
            if ours[1] != theirs[1]:
                near = explained(ours, theirs, at_the_edge(b, row, hair), True)
                assert bool(near) is expected
                checked += 1
    assert checked > 100


def at_the_edge(b: Block, row: int, side: float) -> Block:
    """One row of ``b`` with p of its draft ``side`` beyond u * q, relative."""
    one = Block(*(x[row : row + 1].clone() for x in b))
    u = float(uniform(np.int64(one.seed[0]), np.int64(one.length[0]), 0, ACCEPT))
    draft = int(one.drafts[0, 0])
    q = one.draft[0, 0].double().softmax(0)[draft]
    wanted = float(u * q) * (1 + side)
    others = one.target[0, 0].double()
    others[draft] = -np.inf
    one.target[0, 0, draft] = float(others.logsumexp(0)) + np.log(wanted / (1 - wanted))
    return one
