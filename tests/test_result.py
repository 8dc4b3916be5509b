"""The result unpacks as two, and the statistics add up and print as promised."""

from typing import Any

import pytest

from hybridgen.result import GenerationResult, Stats, add_rates, fold, format_stats
from hybridgen.strategies.declarations import LLM, Declaration
from hybridgen.strategies.declarations import SPECULATIVE as DRAFTING
from hybridgen.strategies.declarations import UNCERTAINTY as ROUTED

SPECULATIVE = {
    "strategy": "speculative",
    "total_tokens": 200,
    "slm_tokens": 128,
    "llm_tokens": 72,
    "decode_steps": 42,
    "elapsed_time": 15.32,
    "prompt_tokens": 5,
    "seed": 7,
    "draft_generated": 168,
    "draft_accepted": 128,
    "accepted_per_position": [40, 36, 30, 22],
    "num_drafts": 4,
    "verification": "rejection",
}
ROUTING = {
    "strategy": "uncertainty",
    "total_tokens": 200,
    "slm_tokens": 166,
    "llm_tokens": 34,
    "decode_steps": 200,
    "elapsed_time": 4.0,
    "prompt_tokens": 5,
    "seed": 7,
    "threshold": 0.5,
    "llm_consecutive_tokens": 1,
}


def block(stats: Stats, declaration: Declaration) -> str:
    """What is printed of a row with these counts."""
    rated = add_rates(dict(stats), declaration.statistics)
    return GenerationResult("", [], rated, "", declaration.lines).summary


def test_the_result_unpacks_as_text_and_stats() -> None:
    result = GenerationResult("b", [2], {"seed": 1}, "ab")
    text, stats = result
    assert (text, stats) == ("b", {"seed": 1})


def test_a_batch_of_one_becomes_a_single_result() -> None:
    rows = {"rows": [{"seed": 1}]}
    batch = GenerationResult(["b"], [[2]], rows, ["ab"], finish_reason=["eos"])
    assert batch.single().finish_reason == "eos"
    assert batch.single() == GenerationResult("b", [2], {"seed": 1}, "ab")


def test_a_strategys_own_lines_stay_with_the_result_and_are_not_compared() -> None:
    stats = {"window": 3}
    batch = GenerationResult(["b"], [[2]], {"rows": [stats]}, ["ab"], ("Window: {window}",))
    assert "\nWindow: 3\n" in batch.single().summary
    assert batch.single() == GenerationResult("b", [2], stats, "ab")
    assert "Window:" not in repr(batch)


def test_a_result_is_one_short_line() -> None:
    text = "a\n" * 1000
    one = GenerationResult(text, [7] * 2000, {"seed": 1}, text, finish_reason="length")
    beginning = repr(text[:57] + "...")
    assert repr(one) == f"GenerationResult({beginning}, 2000 tokens, length)"
    assert repr([one, one]) == f"[{one}, {one}]"
    short = GenerationResult("b", [2], {}, "ab")
    assert repr(short) == "GenerationResult('b', 1 token)"


def test_a_result_of_many_prompts_is_one_short_line_too() -> None:
    texts, reasons = ["a" * 1000, "b", "", "d", "e"], ["length", "eos", "eos", "stop", "eos"]
    tokens = [[1] * 500, [2], [0], [3, 4], [5]]
    many = GenerationResult(texts, tokens, {}, texts, finish_reason=reasons)
    first = repr("a" * 57 + "...")
    assert repr(many) == (
        f"GenerationResult([{first}, 'b', '', ... 2 more], 505 tokens, 1 length, 3 eos, 1 stop)"
    )


def test_the_block_of_speculation() -> None:
    assert block(SPECULATIVE, DRAFTING) == (
        "============================================================\n"
        "Strategy: speculative\n"
        "Time taken: 15.32s\n"
        "Total tokens generated: 200\n"
        "Speed: 13.05 tok/s\n"
        "Decode steps: 42\n"
        "Draft tokens: 168, Accepted: 128, Acceptance rate: 76.19%\n"
        "SLM tokens: 128, LLM tokens: 72\n"
        "============================================================"
    )


def test_the_block_of_routing_has_usage_and_threshold_in_place_of_drafts() -> None:
    lines = block(ROUTING, ROUTED).splitlines()
    assert lines[5:9] == [
        "Decode steps: 200",
        "SLM usage: 83.00%",
        "Threshold: 0.5",
        "SLM tokens: 166, LLM tokens: 34",
    ]


def test_the_block_of_a_baseline_has_neither() -> None:
    keys = ("threshold", "llm_consecutive_tokens")
    stats = {k: v for k, v in ROUTING.items() if k not in keys} | {"strategy": "llm"}
    lines = block(stats, LLM).splitlines()
    assert lines[5:7] == ["Decode steps: 200", "SLM tokens: 166, LLM tokens: 34"]


@pytest.mark.parametrize(
    "stats", [{}, {"strategy": "mine"}, {"threshold": None, "custom": object()}]
)
def test_statistics_of_a_custom_strategy_print_what_they_have(stats: dict[str, Any]) -> None:
    lines = format_stats(stats, DRAFTING.lines + ROUTED.lines).splitlines()
    assert lines[0] == lines[-1] == "=" * 60
    assert lines[1:-1] == [f"Strategy: {name}" for name in [stats.get("strategy")] if name]


def test_rates_over_nothing_are_zero() -> None:
    empty = {"total_tokens": 0, "slm_tokens": 0, "elapsed_time": 0.0, "threshold": 1.0}
    empty |= {"draft_generated": 0, "draft_accepted": 0}
    rates = add_rates(empty, {**DRAFTING.statistics, **ROUTED.statistics})
    assert [rates[k] for k in ("tokens_per_second", "acceptance_rate", "slm_usage")] == [0, 0, 0]


def test_a_batch_sums_counts_and_recomputes_rates() -> None:
    second = {
        **SPECULATIVE,
        "total_tokens": 100,
        "draft_generated": 32,
        "draft_accepted": 22,
        "accepted_per_position": [8, 7, 4, 3],
        "elapsed_time": 15.0,
        "seed": 8,
    }
    rows = [add_rates(row, DRAFTING.statistics) for row in (dict(SPECULATIVE), second)]
    total = fold(rows, DRAFTING.statistics)
    assert total["total_tokens"] == 300
    assert total["prompt_tokens"] == 10
    assert total["decode_steps"] == 84
    assert total["draft_accepted"] == 150
    assert total["acceptance_rate"] == 150 / 200
    assert total["accepted_per_position"] == [48, 43, 34, 25]
    assert total["elapsed_time"] == 15.32
    assert total["tokens_per_second"] == 300 / 15.32
    assert total["seed"] == [7, 8]
    assert total["rows"] == rows
    assert total["strategy"] == "speculative"


def test_a_batch_of_routing_rows_reports_the_mean_threshold() -> None:
    rows = [add_rates({**ROUTING, "threshold": t}, ROUTED.statistics) for t in (0.25, 0.75)]
    total = fold(rows, ROUTED.statistics)
    assert total["threshold"] == 0.5
    assert total["slm_usage"] == 332 / 400


def test_any_function_of_the_rows_values_folds_a_statistic() -> None:
    rows: list[Stats] = [{"strategy": "mine", "deepest": depth} for depth in (3, 7, 5)]
    assert fold(rows, {"deepest": max, "missing": sum}) == {
        "strategy": "mine",
        "deepest": 7,
        "rows": rows,
    }
