"""Speculation that chooses its drafts: whatever it chooses, and whenever, the text is the LLM's."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TinyPair
from fake_graph import as_on_a_gpu
from table_decoder import (
    TableDecoder,
    enumerate_law,
    loaded,
    p_value,
    random_table,
    sample_law,
    write,
)

from hybridgen import HybridGenerator
from hybridgen.engine.loop import Outcome, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.verify import PENDING, SOURCE_LLM
from hybridgen.result import GenerationResult
from hybridgen.strategies import auto
from hybridgen.strategies.adaptive import Chooser
from hybridgen.strategies.auto import LONG, Auto, Experience, Unread, read_by_slm
from hybridgen.strategies.drafts import SlmDrafts
from hybridgen.strategies.estimates import ALONE, LOOKUP, MODEL, Arm
from hybridgen.strategies.single import single_round

PLAIN = (1.0, 0, 1.0, 0.0)
PROMPTS = [
    "def area(radius):\n",
    "x",
    "for item in items:\n    print(item)\nfor item in",
    "the dog",
]
SAMPLED = {"temperature": 0.9, "top_k": 40, "seed": 3}


def at_random(seed: int, patience: int = 1) -> Callable[..., Arm]:
    """Any arm, each for up to ``patience`` rounds, so that the SLM misses much or little."""
    draw, left = random.Random(seed), 0
    arm = Arm("llm", 0)

    def choose(self: Chooser, found: Sequence[int], catch_ups: int) -> Arm:
        nonlocal arm, left
        left -= 1
        if left < 0:
            arm, left = draw.choice(self.costs.arms), draw.randrange(patience)
        return ALONE if arm.drafter == LOOKUP and not any(found) else arm

    return choose


def start(prompts: Sequence[Sequence[int]], depth: int, vocab: int = 5) -> Batch:
    target = random_table(vocab, seed=0)
    draft = random_table(vocab, seed=1, like=target, noise=0.6)
    return loaded(TableDecoder(draft), TableDecoder(target), list(prompts), depth, PLAIN)


def program(batch: Batch, with_q: bool) -> Auto:
    proposer = SlmDrafts()
    made = Auto(batch, proposer, with_q, Experience.of(proposer))
    batch.own(read_by_slm).copy_(batch.rows.length - 1)
    return made


def test_rounds_are_chosen_for_the_rows_that_the_others_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Text 1 is nearest its limit: what lookups find there is no reason to ask for one."""
    asked: list[Sequence[int]] = []
    told: list[tuple[Sequence[int], Sequence[int], float]] = []

    def choose(self: Chooser, found: Sequence[int], catch_ups: int) -> Arm:
        asked.append(found)
        return ALONE

    def saw(
        self: Chooser,
        arm: Arm,
        found: Sequence[int],
        gained: Sequence[int],
        progress: float,
        *_: Any,
    ) -> None:
        told.append((found, gained, progress))

    monkeypatch.setattr(Chooser, "choose", choose)
    monkeypatch.setattr(Chooser, "saw", saw)
    batch = start([[3, 1], [1, 0], [2, 2]], 40)
    made = program(batch, False)
    for texts, gained, to_come, left in (
        ([0, 1, 2], [1, 3, 1], [20, 9, 20], [0, 4, 2]),
        ([0, 1, 2], [2, 4, 1], [18, 5, 19], [1, 4, 3]),
        ([0, 2], [1, 1], [17, 18], [1, 0]),
    ):
        made.reported(Outcome(made.enqueue(), texts, gained, to_come, left, 1.0))
    made.enqueue()
    assert asked == [[], [0, 2], [3], [0]]
    assert told == [
        ([0, 0, 0], [1, 3, 1], pytest.approx(5 / 3)),
        ([0, 4, 2], [2, 4, 1], 1.5),
        ([1, 3], [1, 1], 1),
    ]


@pytest.mark.parametrize("patience", [1, 12, 40])
def test_whatever_is_chosen_the_tokens_are_the_llms(
    monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """The table decoders know what they were fed: the SLM has missed nothing when it drafts."""
    prompts, depth = [[3, 1], [1, 0, 1, 0], list(range(5)) * 4], 120
    batch = start(prompts, depth)
    expected = [text.tokens for text in write(batch, Repeat(batch.round(single_round, SOURCE_LLM)))]
    drafters: set[str] = set()
    rests = random.Random(0)
    monkeypatch.setattr(Chooser, "rests", lambda self, found: rests.choice([0, 0, 0, 1, 2]))
    for seed in range(6):
        monkeypatch.setattr(Chooser, "choose", at_random(seed, patience))
        batch = start(prompts, depth)
        texts = write(batch, program(batch, with_q=False))
        assert [text.tokens for text in texts] == expected
        drafters |= {choice.arm.drafter for text in texts for choice, _ in text.rounds}
    assert drafters == {"llm", "model", "lookup"}


def test_the_slm_catches_up_or_its_drafts_would_be_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chooser, "choose", at_random(0, 12))
    monkeypatch.setattr(auto, "catch_up_round", lambda batch: None)
    batch = start([[3, 1]], 120)
    with pytest.raises(AssertionError, match="never fed"):
        write(batch, program(batch, with_q=False))


def test_after_a_late_prompt_the_slm_catches_up_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table decoders know what they were fed."""
    arms = iter([ALONE] * 20 + [Arm(MODEL, 2)] * 200)
    monkeypatch.setattr(Chooser, "choose", lambda self, found, catch_ups: next(arms))
    batch = start([list(range(5)) * 4], 120)
    made = program(batch, with_q=False)
    batch.own(Unread).add({0: (0, 19)})
    (text,) = write(batch, made)
    assert {choice.arm.drafter for choice, _ in text.rounds} == {"llm", "model"}


@pytest.mark.parametrize("by_host", [True, False])
def test_in_a_rest_the_text_is_looked_up_now_and_then_and_last(
    monkeypatch: pytest.MonkeyPatch, by_host: bool
) -> None:
    """What comes after the rest is chosen by the text as it then ends."""
    looked, asked = [], []

    def looking(tokens: Any, length: Any, drafts: Any) -> torch.Tensor:
        looked.append(n)
        return torch.full_like(length, n)

    def choose(self: Chooser, found: Sequence[int], catch_ups: int) -> Arm:
        asked.append(found)
        return ALONE

    lefts = iter([*range(16, 0, -1), 0])
    monkeypatch.setattr(Chooser, "rests", lambda self, found: next(lefts))
    monkeypatch.setattr(Chooser, "choose", choose)
    monkeypatch.setattr(auto, "lookup", looking)
    batch = start([[3, 1]], 40)
    made = program(batch if by_host else replace(batch, capture=lambda work: work), False)
    for n in range(1, 17):
        name = made.enqueue()
        (report,) = batch.rows.report.tolist()
        made.reported(Outcome(name, [0], [1], [40 - n], [report[PENDING]], 1.0))
    made.enqueue()
    assert looked[:-1] == ([4, 8, 12, 16] if by_host else [*range(1, 17)])
    assert asked == [[16]]


@pytest.mark.parametrize("with_q", [True, False], ids=["rejection", "coupled"])
def test_the_law_is_the_llms(monkeypatch: pytest.MonkeyPatch, with_q: bool) -> None:
    monkeypatch.setattr(Chooser, "choose", at_random(1, 2))
    prompt, depth = [1, 0, 1], 4
    batch = start([prompt] * 20_000, depth)
    observed = sample_law(batch, program(batch, with_q), prompt, depth, 5)
    law = enumerate_law(random_table(5, seed=0), prompt, depth, PLAIN)
    assert p_value(observed, law) > 1e-4


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32, max_seq_len=200)


def generate(generator: HybridGenerator, prompt: Any, **options: Any) -> GenerationResult:
    given = {"max_new_tokens": 60, "ignore_eos": True, "print_stats": False, **options}
    return generator.generate(prompt, **given)


@pytest.mark.parametrize("mode", [{"temperature": 0}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "a round ahead"])
def test_it_is_the_default_and_writes_the_llms_tokens(
    tiny_pair: TinyPair,
    generator: HybridGenerator,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
    mode: dict[str, Any],
) -> None:
    """Also captured, and with rows that are refilled while others go on."""
    options = {"device": "cpu", "dtype": torch.float32, "max_seq_len": 200, "max_batch_size": 2}
    made = HybridGenerator(*tiny_pair, **options)
    if late:
        as_on_a_gpu(made.pair)
    monkeypatch.setattr(Chooser, "choose", at_random(2, 20))
    for prompt in (PROMPTS[0], PROMPTS):
        alone = generate(generator, prompt, strategy="llm", **mode)
        found = generate(made, prompt, **mode)
        assert found.tokens == alone.tokens
        assert (found.stats["num_drafts"], found.stats["verification"]) == ("auto", "coupled")


class Log(list[str]):
    """What came first: a piece of text, or that the SLM read prompts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, arm: Arm) -> None:
        read = Unread.read

        def reading(unread: Unread) -> None:
            self.append(f"{len(unread.prompts)} prompts")
            read(unread)

        monkeypatch.setattr(Unread, "read", reading)
        monkeypatch.setattr(Chooser, "choose", lambda self, found, catch_ups: arm)


@pytest.mark.parametrize("words", [4, 120])
def test_the_slm_reads_a_long_prompt_after_the_first_token(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    log = Log(monkeypatch, Arm(MODEL, 2))
    prompt = list(range(10, 10 + words))
    text = generate(generator, prompt, stream=lambda piece: log.append("text"), **SAMPLED).tokens
    assert log.index("1 prompts") == (1 if words > LONG else 0) and log.count("1 prompts") == 1
    assert text == generate(generator, prompt, strategy="llm", **SAMPLED).tokens


def test_an_slm_that_is_never_asked_reads_nothing(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has it for the next call, which goes on from what the LLM has read."""
    log = Log(monkeypatch, ALONE)
    prompt = generate(generator, PROMPTS[1], max_new_tokens=20, **SAMPLED).full_text
    assert log == []
    log = Log(monkeypatch, Arm(MODEL, 3))
    found = generate(generator, prompt, reuse=True, **SAMPLED)
    assert log == ["1 prompts"]
    assert found.tokens == generate(generator, prompt, strategy="llm", **SAMPLED).tokens
    fixed = generate(generator, prompt, num_drafts=3, verification="coupled", **SAMPLED)
    assert found.stats["draft_accepted"] == fixed.stats["draft_accepted"] > 0


def test_prompts_that_come_later_are_read_when_drafts_are_wanted(
    tiny_pair: TinyPair, generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(monkeypatch, Arm(MODEL, 2))
    narrow = HybridGenerator(*tiny_pair, dtype=torch.float32, max_batch_size=2, max_seq_len=200)
    expected = generate(generator, PROMPTS, strategy="llm", **SAMPLED).tokens
    assert generate(narrow, PROMPTS, **SAMPLED).tokens == expected
    assert sum(int(entry.split()[0]) for entry in log) == len(PROMPTS)


def test_rounds_that_a_prompt_was_read_beside_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the round before it, whose report may have waited for the host."""
    timed: list[float | None] = []
    arms = iter([ALONE, Arm(MODEL, 1), ALONE])
    monkeypatch.setattr(Chooser, "choose", lambda self, found, catch_ups: next(arms))
    monkeypatch.setattr(Chooser, "saw", lambda self, *told: timed.append(told[4]))
    batch = start([[3, 1]], 40)
    made = program(batch, False)
    batch.own(Unread).add({0: (0, 1)})
    flying = [made.enqueue(), made.enqueue()]
    for seconds in (1.0, 2.0, 3.0):
        made.reported(Outcome(flying.pop(0), [0], [1], [20], [0], seconds))
        if seconds == 1.0:
            flying.append(made.enqueue())
    assert timed == [None, None, 3.0]


def test_statistics_tell_what_was_chosen(generator: HybridGenerator) -> None:
    for prompt in (PROMPTS[2], PROMPTS):
        result = generate(generator, prompt, **SAMPLED)
        stats = result.stats
        written = stats["slm_tokens"] + stats["lookup_tokens"] + stats["llm_tokens"]
        assert written == stats["total_tokens"]
        assert stats["draft_accepted"] == stats["slm_tokens"] + stats["lookup_tokens"]
        assert sum(stats["accepted_per_position"]) == stats["draft_accepted"]
        assert stats["mean_drafts"] == stats["draft_generated"] / stats["decode_steps"]
        chosen = stats["rounds_without_drafts"] + stats["lookup_rounds"]
        assert 0 <= chosen <= stats["decode_steps"]
        assert "Drafts a round: " in result.summary


def test_statistics_end_with_the_stop_string(generator: HybridGenerator) -> None:
    text = generate(generator, PROMPTS[0], **SAMPLED).text
    stats = generate(generator, PROMPTS[0], stop=text[20:24], **SAMPLED).stats
    assert stats["total_tokens"] < 60
    assert stats["draft_accepted"] + stats["llm_tokens"] == stats["total_tokens"]
    assert stats["decode_steps"] <= stats["total_tokens"]


def test_rejection_may_be_asked_for(generator: HybridGenerator) -> None:
    stats = generate(generator, PROMPTS[0], verification="rejection", **SAMPLED).stats
    assert (stats["num_drafts"], stats["verification"]) == ("auto", "rejection")
    assert generate(generator, PROMPTS[0], num_drafts=3).stats["verification"] == "rejection"


def test_what_is_learnt_outlives_a_call(generator: HybridGenerator) -> None:
    generate(generator, PROMPTS[0], **SAMPLED)
    batch, strategy = generator.pair.batch(1), generator.strategies["speculative"]
    known = batch.own(strategy._experience)  # type: ignore[union-attr]
    assert known.costs.timed(Arm("llm", 0)) > 0
    assert known is batch.own(strategy._experience)  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["Auto", "4", 0, 16, 2.5, None])
def test_other_numbers_are_refused(generator: HybridGenerator, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^num_drafts must be an integer from 1 to"):
        generate(generator, PROMPTS[0], num_drafts=value)
