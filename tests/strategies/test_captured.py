"""Whole strategies, captured and one round ahead: the text and its statistics are the eager ones.

As on a GPU, but for the device: rounds are recorded once and replayed (`fake_graph`), and reports
arrive late. Prompts change between replays, in number, length, seed and sampling.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TinyPair
from fake_graph import FakeGraphs, ReadBack, as_on_a_gpu

from hybridgen import HybridGenerator
from hybridgen.engine import prefill, prompt_graphs
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.strategies import base
from hybridgen.strategies.single import single_round

PROMPTS = [
    "def area(radius):\n", "x", "for item in items:\n    print(item)\n", "Ελλάδα, ",
    "a b c d e f g", "the quick brown fox", "日本語", "0",
]  # fmt: skip
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
PENALTIES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 60]}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy, K = 1": {"temperature": 0, "num_drafts": 1},
    "greedy, K = 4": {"temperature": 0, "num_drafts": 4},
    "rejection, K = 4": {**SAMPLED, "num_drafts": 4, "verification": "rejection"},
    "rejection, K = 15": {**SAMPLED, "num_drafts": 15, "verification": "rejection"},
    "coupled, K = 8": {**SAMPLED, "num_drafts": 8, "verification": "coupled"},
    "llm": {**SAMPLED, "strategy": "llm"},
    "slm": {**SAMPLED, "strategy": "slm"},
    "entropy": {**SAMPLED, "strategy": "entropy", "threshold": 2.0},
    "entropy, a share": {**SAMPLED, "strategy": "entropy", "llm_fraction": 0.2},
    "uncertainty, a share": {
        **SAMPLED,
        "strategy": "uncertainty",
        "llm_fraction": 0.4,
        "llm_consecutive_tokens": 5,
    },
    "penalties, K = 4": {**SAMPLED, "num_drafts": 4, "verification": "rejection", **PENALTIES},
    "other penalties, llm": {
        **SAMPLED,
        "strategy": "llm",
        **PENALTIES,
        "repetition_penalty": 0.8,
        "suppress_tokens": [9],
    },
    "penalties, entropy": {**SAMPLED, "strategy": "entropy", "threshold": 2.0, **PENALTIES},
    "no eos at first": {**SAMPLED, "num_drafts": 4, "min_new_tokens": 9},
}


def made(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(
        *tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=4, max_seq_len=200
    )


@pytest.fixture(scope="module")
def eager(tiny_pair: TinyPair) -> HybridGenerator:
    return made(tiny_pair)


@pytest.fixture(scope="module")
def captured(tiny_pair: TinyPair) -> HybridGenerator:
    return made(tiny_pair)


@pytest.fixture(scope="module")
def graphs(captured: HybridGenerator) -> FakeGraphs:
    return as_on_a_gpu(captured.pair)


def write(generator: HybridGenerator, prompt: Any, **options: Any) -> Any:
    given = {"max_new_tokens": 24, "seed": 3, "print_stats": False, **options}
    return generator.generate(prompt, **given)


def told(result: Any) -> dict[str, Any]:
    """The statistics, but for times."""
    stats = {k: v for k, v in result.stats.items() if k not in ("elapsed_time", "rows")}
    del stats["tokens_per_second"]
    return stats


@pytest.mark.parametrize("name", REQUESTS)
def test_a_replay_writes_what_the_eager_round_writes(
    eager: HybridGenerator, captured: HybridGenerator, graphs: FakeGraphs, name: str
) -> None:
    options = REQUESTS[name]
    for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[:4], PROMPTS[2:5], PROMPTS[4:8]):
        expected = write(eager, prompt, **options)
        result = write(captured, prompt, **options)
        assert result.tokens == expected.tokens
        assert told(result) == told(expected)
    assert graphs.replays > 0


def test_a_round_is_captured_once_a_width(captured: HybridGenerator, graphs: FakeGraphs) -> None:
    write(captured, PROMPTS[0], num_drafts=3)
    before = graphs.rounds
    for count, new in ((1, 0), (2, 1), (2, 1), (3, 2), (4, 2), (7, 2), (1, 2)):
        write(captured, PROMPTS[:count], num_drafts=3)
        assert graphs.rounds == before + new, count


def test_warmup_captures_all_that_a_call_needs(
    captured: HybridGenerator, graphs: FakeGraphs
) -> None:
    options = {"strategy": "entropy", "llm_consecutive_tokens": 3}
    before = graphs.rounds
    assert captured.warmup(**options) is None
    assert graphs.rounds > before
    before = graphs.rounds
    for count in (1, 2, 3, 4, 8):
        write(captured, PROMPTS[:count], threshold=1.0, **options)
    assert graphs.rounds == before


@pytest.mark.parametrize(("strategy", "both"), [("speculative", True), ("llm", False)])
def test_warmup_captures_what_reads_short_prompts(
    tiny_pair: TinyPair, strategy: str, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (prefill, prompt_graphs):
        monkeypatch.setattr(module, "SLOTS", {16: 2, 64: 1})
    generator = made(tiny_pair)
    works: list[object] = []
    graphs: Any = SimpleNamespace(record=lambda work: works.append(work) or work)
    generator.pair.read_prompts_by(graphs)
    generator.warmup(strategy, batch_sizes=[1, 2])
    assert len(works) == (4 if both else 2)
    texts = [write(generator, prompt, strategy=strategy).tokens for prompt in PROMPTS[:3]]
    assert len(works) == (4 if both else 2)
    plain = made(tiny_pair)
    assert texts == [write(plain, prompt, strategy=strategy).tokens for prompt in PROMPTS[:3]]


def test_warmup_of_some_widths_captures_these(
    captured: HybridGenerator, graphs: FakeGraphs
) -> None:
    before = graphs.rounds
    captured.warmup(num_drafts=11, batch_sizes=[3])
    assert graphs.rounds == before + 1


def test_a_terminal_is_shown_how_many_rounds_are_ready(
    captured: HybridGenerator, graphs: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            shown.append(0)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self) -> None:
            shown[-1] += 1

    monkeypatch.setattr(base, "tqdm", Bar)
    captured.warmup(num_drafts=13, batch_sizes=[1])
    assert shown == []  # the tests' stderr is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    captured.warmup(num_drafts=13)  # four, two and one row: the last is there
    assert shown == [1, 1, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"strategy": "speculativ"}, "did you mean 'speculative'"),
        ({"batch_sizes": 4}, "batch_sizes must be a list"),
        ({"batch_sizes": []}, "batch_sizes must be a list"),
        ({"batch_sizes": [0]}, "batch_sizes"),
        ({"num_drafts": 99}, "num_drafts must be"),
        ({"num_draft": 4}, "did you mean 'num_drafts'"),
    ],
)
def test_warmup_checks_what_it_is_given(
    eager: HybridGenerator, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        eager.warmup(**arguments)
    assert eager.warmup() is None  # a CPU has nothing to prepare


def test_a_change_of_the_texts_between_two_calls_is_seen(
    eager: HybridGenerator, captured: HybridGenerator, graphs: FakeGraphs
) -> None:
    """Limits, eos ids, seeds and stop strings are the next call's, not those of the capture."""
    for options in (
        {"max_new_tokens": 3},
        {"max_new_tokens": 40},
        {"seed": 9},
        {"eos_token_id": [50, 60, 70, 80, 90]},
        {"stop": ["e", "a"]},
        {"top_k": 2, "temperature": 1.5},
        {"temperature": 0.0, "min_p": 0.1},
    ):
        given = {"num_drafts": 5, **SAMPLED, **options}
        expected = write(eager, PROMPTS[:3], **given)
        result = write(captured, PROMPTS[:3], **given)
        assert (result.tokens, result.text) == (expected.tokens, expected.text)
        assert told(result) == told(expected)


FAULTS: dict[str, Callable[[Batch], None]] = {
    "a value read back": lambda batch: batch.rows.seed.add_(0 * int(batch.rows.length[0])),
    "a truth": lambda batch: None if bool(batch.rows.done.all()) else batch.rows.done.logical_not(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_round_that_reads_a_value_cannot_be_captured(
    captured: HybridGenerator, graphs: FakeGraphs, name: str
) -> None:
    with torch.inference_mode(), pytest.raises(ReadBack):
        captured.pair.batch(1).round(FAULTS[name])


def frozen(batch: Batch, _: str) -> None:
    """Draws with the seed that it saw first."""
    seed = batch.rows.seed.clone()
    with torch.utils._python_dispatch._disable_current_modes():
        seed = batch.rows.seed.clone()
    single_round(replaced(batch, seed), SOURCE_LLM)


def replaced(batch: Batch, seed: torch.Tensor) -> Batch:
    return replace(batch, rows=replace(batch.rows, seed=seed), _rounds={})


def test_what_the_host_holds_at_capture_is_stale_in_a_replay(
    captured: HybridGenerator, graphs: FakeGraphs
) -> None:
    """The stand-in for a graph finds out what a real one would do wrong."""
    batch = captured.pair.batch(1)
    with captured.pair.turn(), torch.inference_mode():
        texts = []
        for fault in (True, False):
            function = frozen if fault else single_round
            round_ = batch.round(function, "frozen" if fault else SOURCE_LLM)
            for seed in (11, 12):
                batch.rows.load([[5, 6, 7]], [20], [seed], (1.0, 0, 1.0, 0.0), [])
                captured.llm.prefill(batch.rows.tokens, [2])
                for _ in range(8):
                    round_()
                texts.append(batch.rows.tokens[0, 3:11].tolist())
    assert texts[0] == texts[1] != texts[3]
    assert texts[2] != texts[3]
