"""Only right texts of equal length get times, and every contender does the same work."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TinyPair

from hybridgen import HybridGenerator
from hybridgen.benchmarks import ours
from hybridgen.benchmarks.contender import Pair, Place, Work, Written
from hybridgen.benchmarks.judge import Judge
from hybridgen.benchmarks.measure import measure
from hybridgen.engine.loading import load_model

GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_k": 0, "top_p": 1.0}
FEW = {"temperature": 0.8, "top_k": 3, "top_p": 1.0}
LIKELY = {"temperature": 0.2, "top_k": 0, "top_p": 0.3}
Change = Callable[[list[list[int]]], list[list[int]]]


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    pair = Pair("tiny", str(tiny_pair.slm), str(tiny_pair.llm), "code")
    return ours.open_generator(pair, Place("cpu", "float32", 1), batch=2)


@pytest.fixture(scope="module")
def judge(tiny_pair: TinyPair) -> Judge:
    folders = {"slm": tiny_pair.slm, "llm": tiny_pair.llm}
    cpu = torch.device("cpu")
    return Judge(
        {name: load_model(at, "checkpoint", cpu, torch.float32) for name, at in folders.items()}
    )


def works(sampling: dict[str, float], batch: int = 1) -> list[Work]:
    prompts = [[5, 6, 7], [9, 8]]
    return [
        Work(prompts[first : first + batch], 8, sampling, seed=first)
        for first in range(0, 2, batch)
    ]


def test_repeats_end_when_the_time_is_over(generator: HybridGenerator, judge: Judge) -> None:
    """The first that counts is measured all the same."""
    ways = ours.contenders(generator, (ours.LLM,))
    found = measure(ways, works(GREEDY), 5, judge, until=0.0)
    assert len(found["llm"].seconds) == 1 and found["llm"].text == "right"


@dataclass
class Changed:
    """A contender that spoils what another writes, from some call on."""

    inner: ours.Ours
    change: Change
    name: str = "changed"
    after: int = 0
    batch: int = 2
    writers: tuple[str, ...] = ("llm",)
    samples: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    calls: int = 0

    def promises(self, work: Work) -> str | None:
        return None

    def write(self, work: Work) -> Written:
        written = self.inner.write(work)
        self.calls += 1
        if work.new_tokens == 1 or self.calls <= self.after:
            return written
        return Written(self.change([list(new) for new in written.tokens]))

    def close(self) -> None: ...


def one_other_token(tokens: list[list[int]]) -> list[list[int]]:
    tokens[-1][4] = (tokens[-1][4] + 1) % 300
    return tokens


def one_less(tokens: list[list[int]]) -> list[list[int]]:
    return [new[:-1] for new in tokens]


def one_more(tokens: list[list[int]]) -> list[list[int]]:
    return [[*new, 3] for new in tokens]


def all_but_one(tokens: list[list[int]]) -> list[list[int]]:
    return tokens[:-1]


WAYS = (ours.LLM, ours.SLM, ours.speculative(3), ours.AUTO, ours.LOOKUP)
ROUTED = (ours.routed("uncertainty", threshold=0.5), ours.routed("random", threshold=0.5))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, FEW, LIKELY], ids=str)
def test_ours_are_right_and_timed(
    generator: HybridGenerator, judge: Judge, sampling: dict[str, float], batch: int
) -> None:
    contenders = ours.contenders(generator, (*WAYS, *ROUTED))
    assert len(contenders) == len(WAYS) + len(ROUTED)
    found = measure(contenders, works(sampling, batch), 2, judge)
    for name, one in found.items():
        assert one.text == ("sampled" if sampling["temperature"] else "right"), name
        assert len(one.seconds) == len(one.first) == 2 and min(one.seconds + one.first) > 0
        assert one.tokens == 16 and max(one.quality) < 0
    speculation = ours.statistics(found["speculative, K = 3"].stats)
    assert 1 <= speculation["tokens_per_round"] <= 4
    assert len(speculation["acceptance_per_position"]) == 3
    assert ours.statistics(found["slm"].stats)["llm_fraction"] == 0


@pytest.mark.parametrize(
    "change, reason",
    [
        (one_other_token, "is no choice of the llm"),
        (one_less, "has 7 of 8 tokens"),
        (one_more, "has 9 of 8 tokens"),
        (all_but_one, "texts for"),
    ],
)
@pytest.mark.parametrize("after", [0, 6], ids=["at once", "in the last repeat"])
def test_a_wrong_greedy_text_has_no_times(
    generator: HybridGenerator, judge: Judge, change: Change, reason: str, after: int
) -> None:
    (llm,) = ours.contenders(generator, (ours.LLM,))
    found = measure([llm, Changed(llm, change, after=after)], works(GREEDY), 2, judge)
    assert reason in found["changed"].text
    assert not found["changed"].seconds and not found["changed"].first
    assert not found["changed"].quality and found["changed"].tokens == 0
    assert found["llm"].text == "right" and len(found["llm"].seconds) == 2


@pytest.mark.parametrize("sampling", [FEW, LIKELY], ids=str)
def test_a_drawn_token_that_no_filter_leaves_is_wrong(
    generator: HybridGenerator, judge: Judge, sampling: dict[str, float]
) -> None:
    """`one_other_token` is one of 300, of which three are left, or those of a third of the mass."""
    (llm,) = ours.contenders(generator, (ours.LLM,))
    spoiled = Changed(llm, one_other_token)
    found = measure([llm, spoiled], works(sampling), 1, judge)
    assert "is no choice of the llm" in found["changed"].text and found["llm"].text == "sampled"
    assert not found["changed"].seconds


@pytest.mark.parametrize("change", [one_less, one_more])
def test_an_unequal_count_is_wrong_where_texts_are_drawn_too(
    generator: HybridGenerator, judge: Judge, change: Change
) -> None:
    (llm,) = ours.contenders(generator, (ours.LLM,))
    found = measure([llm, Changed(llm, change)], works(SAMPLED), 1, judge)
    assert "of 8 tokens" in found["changed"].text and not found["changed"].seconds


def test_what_promises_the_llms_tokens_is_held_to_them(
    generator: HybridGenerator, judge: Judge
) -> None:
    """Drawn texts, so that nothing but the promise can tell."""

    class Promising(Changed):
        def promises(self, work: Work) -> str | None:
            return "llm"

    llm, coupled = ours.contenders(generator, (ours.LLM, ours.speculative(3, "coupled")))
    assert coupled.promises(works(SAMPLED)[0]) == "llm"
    found = measure([llm, coupled, Promising(llm, one_other_token)], works(SAMPLED), 1, judge)
    assert found[coupled.name].text == "sampled"
    assert found["changed"].text == "wrong: not the tokens of llm, which it promises"


def test_a_text_of_the_other_model_is_not_the_llms(
    generator: HybridGenerator, judge: Judge
) -> None:
    llm, slm = ours.contenders(generator, (ours.LLM, ours.SLM))
    posing = Changed(slm, lambda tokens: tokens)
    found = measure([llm, slm, posing], works(GREEDY), 1, judge)
    assert found["slm"].text == "right" and "no choice of the llm" in found["changed"].text


def test_drawn_texts_differ_from_repeat_to_repeat_and_contenders_take_turns(
    generator: HybridGenerator, judge: Judge
) -> None:
    told: list[tuple[str, int, int]] = []

    class Telling(Changed):
        def write(self, work: Work) -> Written:
            told.append((self.name, work.new_tokens, work.seed))
            return self.inner.write(work)

    (llm,) = ours.contenders(generator, (ours.LLM,))
    both = [Telling(llm, one_less, name="a"), Telling(llm, one_less, name="b")]
    measure(both, works(SAMPLED), 2, judge)
    assert [name for name, *_ in told] == ["a"] * 3 + ["b"] * 3 + (["a"] * 3 + ["b"] * 3) * 2
    seeds = [seed for name, count, seed in told if name == "a" and count == 8]
    assert len(set(seeds)) == 6
    assert seeds == [seed for name, count, seed in told if name == "b" and count == 8]


def test_quality_is_the_mean_log_likelihood(judge: Judge) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    logits = judge.models["llm"](ids).logits.detach().log_softmax(-1)
    expected = (logits[0, 1, 7] + logits[0, 2, 8]) / 2
    assert judge.quality([[5, 6]], [[7, 8]]) == pytest.approx(float(expected), abs=1e-5)


def test_one_that_fails_is_told_and_the_others_go_on(
    generator: HybridGenerator, judge: Judge
) -> None:
    def fail(tokens: list[list[int]]) -> list[list[int]]:
        raise MemoryError("no room")

    (llm,) = ours.contenders(generator, (ours.LLM,))
    found = measure([Changed(llm, fail, after=3), llm], works(GREEDY), 2, judge)
    assert found["changed"].text == "wrong: MemoryError: no room"
    assert not found["changed"].seconds and len(found["llm"].seconds) == 2


class Certain:
    """A bfloat16 model that gives its first token so much probability, the rest to the second."""

    dtype, device = torch.bfloat16, torch.device("cpu")

    def __init__(self, probability: float) -> None:
        odds = torch.tensor(probability / (1 - probability))
        self.row = torch.tensor([12 + float(odds.log()), 12.0, -10.0, -10.0])

    def __call__(self, ids: torch.Tensor, logits_to_keep: int) -> Any:
        return SimpleNamespace(logits=self.row.expand(1, logits_to_keep, -1))


@pytest.mark.parametrize(
    ("probability", "verdict"),
    [(0.94, "sampled"), (0.951, "sampled"), (0.99999, "wrong: text 0, token 1 is no choice of")],
)
def test_the_edge_of_a_nucleus_is_as_wide_as_rounding(probability: float, verdict: str) -> None:
    """Another engine's roundings may leave the first token less than top-p of the mass."""
    work = Work([[0]], 2, {"temperature": 1.0, "top_k": 0, "top_p": 0.95}, 0)
    judge = Judge({"llm": Certain(probability)})
    assert judge.verdict(work, [[0, 1]], ("llm",)).startswith(verdict)
