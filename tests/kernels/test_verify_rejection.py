"""Rejection writes what the LLM alone would, in law.

The exact law of a round is enumerated: the LLM and the draft are tables of logits by the token
before, so every text of K + 1 tokens has a probability that a few lines of float64 work out. Many
rows with different seeds then have to follow it.
"""

import numpy as np
import pytest
import torch
from sampling_oracle import ACCEPTABLE, filtered, p_value
from torch import Tensor
from verify_rounds import NAN, PLAIN, SAMPLINGS, Round, World, draft, world

from hybridgen.kernels import verify
from hybridgen.kernels.philox import ACCEPT, DRAFT, LARGEST, RESIDUAL, SMALLEST, TARGET
from hybridgen.kernels.sampling import LOG_Z, filter_logits


def tables(models: World, sampling: tuple) -> tuple[np.ndarray, np.ndarray]:
    """p and q [V, max(V, V')] in float64, by the token before."""
    width = max(models.llm.shape[1], models.slm.shape[1])
    p, q = (
        np.array([np.pad(r, (0, width - len(r))) for r in rows])
        for rows in ([filtered(row.tolist(), *sampling) for row in table] for table in models)
    )
    return p, q


def law_of_round(models: World, drafts: int, sampling: tuple) -> dict[tuple[int, ...], float]:
    """Probability of each emitted text, from min(p, q) and max(p - q, 0) alone."""
    p, q = tables(models, sampling)
    law: dict[tuple[int, ...], float] = {}

    def extend(text: tuple[int, ...], weight: float) -> None:
        last = text[-1] if text else 0
        if len(text) == drafts:
            for token, chance in enumerate(p[last]):
                law[(*text, token)] = law.get((*text, token), 0) + weight * chance
            return
        accepted = np.minimum(p[last], q[last])  # q(x) * min(1, p(x) / q(x))
        for token, rejected in enumerate(np.maximum(p[last] - q[last], 0)):
            # The rejection mass 1 - sum(accepted) is also the residual's normaliser.
            law[(*text, -1, token)] = weight * rejected
            if accepted[token] > 0:
                extend((*text, token), weight * accepted[token])

    extend((), 1.0)
    return {text: chance for text, chance in law.items() if chance > 0}


def texts(tokens: Tensor, count: Tensor, drafts: int) -> list[tuple[int, ...]]:
    """Emitted texts, with -1 before a token that replaced a rejected draft."""
    return [
        (*row[: n - 1], *([-1] if n <= drafts else []), row[n - 1])
        for row, n in zip(tokens.tolist(), count.tolist(), strict=True)
    ]


def fit(models: World, drafts: int, sampling: tuple, rows: int) -> float:
    """p-value of `rows` rounds of rejection verification under the enumerated law."""
    tokens, count, broken = draft(models, drafts, rows, sampling).rejection()
    assert not broken.any()
    law = law_of_round(models, drafts, sampling)
    seen = dict.fromkeys(law, 0)
    for text in texts(tokens, count, drafts):
        if text not in seen:
            return 0.0
        seen[text] += 1
    return p_value(np.array(list(seen.values())), np.array(list(law.values())))


# The law


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("drafts", [1, 2, 3, 4, 5])
def test_a_round_follows_the_enumerated_law(drafts: int, sampling: tuple) -> None:
    """Every text, its acceptances and its replacements; trap 29: the law, not the acceptance."""
    assert fit(world(seed=drafts), drafts, sampling, rows=20_000) > ACCEPTABLE


def test_a_round_follows_the_enumerated_law_over_many_rows() -> None:
    assert fit(world(vocab=8, seed=1), 2, (0.8, 5, 0.95, 0.02), rows=200_000) > ACCEPTABLE


def stepped(models: World, level: float, step: float) -> World:
    """Logits of few values, ``step`` apart around ``level``: most rows have equals at the top."""
    return World(*(level + table.round() * step for table in models))


@pytest.mark.parametrize("temperature", [1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 0.1, 10.0, 1e4])
def test_a_round_follows_the_enumerated_law_at_every_temperature(temperature: float) -> None:
    """Of equals, of logits an ulp apart, and of large ones, whose quotients are beyond float32."""
    for level, step in ((0, 1), (1, 2.0**-23), (-3e4, 0.5), (1e30, 1e24)):
        models = stepped(world(seed=5), level, step)
        assert fit(models, 2, (temperature, 0, 1.0, 0.0), rows=10_000) > ACCEPTABLE


@pytest.mark.parametrize("temperature", [1e-8, 1e-5])
def test_two_equals_are_as_likely_at_any_temperature(temperature: float) -> None:
    """Both as drafts and as the LLM's tokens: each half of 20,000, within four deviations."""
    models = World(torch.tensor([[30.0, 30.0, 7.0]] * 3), torch.tensor([[30.0, 30.0, 7.0]] * 3))
    tokens, count, _ = draft(models, 1, 20_000, (temperature, 0, 1.0, 0.0)).rejection()
    assert (count == 2).all()
    for column in (0, 1):
        assert abs((tokens[:, column] == 0).float().mean() - 0.5) < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("draft_vocab", [3, 6])
@pytest.mark.parametrize("sampling", [PLAIN, (1.0, 3, 0.9, 0.0)], ids=str)
def test_vocabularies_may_differ(draft_vocab: int, sampling: tuple) -> None:
    """Tokens the draft lacks have q = 0; drafts that the LLM lacks have p = 0 and are rejected."""
    assert fit(world(4, draft_vocab, seed=2), 2, sampling, rows=20_000) > ACCEPTABLE
    tokens, _, _ = draft(world(4, draft_vocab), 2, 500, sampling).rejection()
    assert tokens.max() < 4


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_first_token_is_the_llms(sampling: tuple) -> None:
    """Whatever the draft: an opposite one, an equal one."""
    for models in (world(noise=0.0), world(noise=4.0), World(world().llm, -3 * world().llm)):
        tokens, _, _ = draft(models, 3, 20_000, sampling).rejection()
        counts = np.bincount(tokens[:, 0], minlength=4)
        assert p_value(counts, tables(models, sampling)[0][0]) > ACCEPTABLE


@pytest.mark.usefixtures("with_references")
@pytest.mark.parametrize(
    ("stream", "wrong"),
    [("RESIDUAL", DRAFT), ("ACCEPT", DRAFT), ("RESIDUAL", ACCEPT), ("ACCEPT", RESIDUAL)],
)
def test_traps_1_and_2_a_shared_stream_is_found(
    stream: str, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault shows: the test above rejects draws that are not independent."""
    models = world(vocab=8, noise=2.0, seed=3)
    assert fit(models, 1, PLAIN, rows=50_000) > ACCEPTABLE
    monkeypatch.setattr(verify, stream, wrong)
    assert fit(models, 1, PLAIN, rows=50_000) < 1e-9


def test_streams_differ() -> None:
    assert len({TARGET, DRAFT, ACCEPT, RESIDUAL}) == 4


def test_trap_3_q_is_the_distribution_the_draft_was_drawn_from() -> None:
    """bfloat16 logits, coarse enough to matter, read alike when drawn and when verified."""
    models = world(vocab=6, seed=3)
    coarse = World(models.llm, (models.slm * 20).to(torch.bfloat16).float() / 20)
    bf16 = World(models.llm, (models.slm * 20).to(torch.bfloat16))
    hot = (20.0, 0, 1.0, 0.0)
    exact = World(models.llm * 20, coarse.slm * 20)
    tokens, count, _ = draft(World(exact.llm, bf16.slm), 2, 50_000, hot).rejection()
    law = law_of_round(exact, 2, hot)
    seen = dict.fromkeys(law, 0)
    for text in texts(tokens, count, 2):
        seen[text] += 1
    assert p_value(np.array(list(seen.values())), np.array(list(law.values()))) > ACCEPTABLE


@pytest.mark.usefixtures("with_references")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_an_equal_draft_is_always_accepted(
    sampling: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p and q are computed alike, so p = q to the bit, and u < 1: even at the largest u."""
    models = world(vocab=50, noise=0.0)
    monkeypatch.setattr(verify, "uniform", lambda *_: LARGEST)
    _, count, _ = draft(models, 4, 2_000, sampling).rejection()
    assert (count == 5).all()


# The ends of the numbers


def one_draft(p: list[float], q: list[float], token: int) -> Round:
    """One row, one draft `token` from q, verified by p; probabilities in, logits inside."""
    target, drafted = (
        torch.tensor(x, dtype=torch.float64).log().float()[None, None] for x in (p, q)
    )
    params = torch.tensor([PLAIN], dtype=torch.float64)
    return Round(
        target.expand(1, 2, -1),
        drafted,
        torch.tensor([[token]]),
        filter_logits(drafted[0], params)[None],
        params,
        torch.tensor([3]),
        torch.tensor([0]),
    )


@pytest.mark.usefixtures("with_references")
@pytest.mark.parametrize("u", [SMALLEST, np.float32(0.5), LARGEST])
def test_traps_7_and_8_no_u_accepts_what_the_llm_forbids(
    u: np.float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "uniform", lambda *_: np.full((1, 1), u))
    for q in ([0.2, 0.2, 0.6], [0.5, 0.5, 0.0]):  # the latter: not the draft's either, 0 against 0
        tokens, count, _ = one_draft([0.5, 0.5, 0.0], q, token=2).rejection()
        assert count.tolist() == [1] and tokens[0, 0] in (0, 1)


@pytest.mark.usefixtures("with_references")
def test_trap_8_the_smallest_u_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not 0: it accepts p >= 2**-64 q and no less."""
    monkeypatch.setattr(verify, "uniform", lambda *_: np.full((1, 1), SMALLEST))
    for p, count in ((1e-18, 2), (1e-21, 1)):  # 2**-64 = 5.4e-20
        assert one_draft([1 - p, p], [0.01, 0.99], token=1).rejection()[1].tolist() == [count]


def test_denormal_probabilities() -> None:
    """q = 1e-40: the product u * q < p needs no quotient. And p = 1e-40 is a plain rejection."""
    tokens, count, _ = one_draft([0.5, 0.5], [1.0, 1e-40], token=1).rejection()
    assert count.tolist() == [2] and tokens[0, 0] == 1
    tokens, count, _ = one_draft([1.0, 1e-40], [0.5, 0.5], token=1).rejection()
    assert count.tolist() == [1] and tokens[0, 0] == 0


@pytest.mark.parametrize("damage", ["truncation", "logits", "both"])
def test_trap_6_nan_in_the_draft_means_drawn_from_the_llm(damage: str) -> None:
    """Never the rejected token over again: p's law, and nothing flagged."""
    case = draft(world(seed=4), 2, 20_000)
    if damage != "logits":
        case = case._replace(draft_truncation=torch.full_like(case.draft_truncation, NAN))
    if damage != "truncation":
        case = case._replace(draft_logits=torch.full_like(case.draft_logits, NAN))
    tokens, count, broken = case.rejection()
    assert (count == 1).all() and not broken.any()
    law = tables(world(seed=4), PLAIN)[0][0]
    assert p_value(np.bincount(tokens[:, 0], minlength=4), law) > ACCEPTABLE


@pytest.mark.usefixtures("with_references")
def test_a_residual_without_mass_means_drawn_from_the_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    """q above p everywhere, by an error of its normaliser: p - q is nowhere positive."""
    monkeypatch.setattr(verify, "uniform", lambda seed, *_: np.full((len(seed), 1), LARGEST))
    case = draft(world(noise=0.0), 1, 20_000)
    case.draft_truncation[..., LOG_Z] -= 0.01
    tokens, count, _ = case.rejection()
    assert (count == 1).all()
    law = tables(world(), PLAIN)[0][0]
    assert p_value(np.bincount(tokens[:, 0], minlength=4), law) > ACCEPTABLE
