"""Tables say what the lines say, and the files hold what the report prints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_lines import CONDITIONS, line

from hybridgen.benchmarks import report
from hybridgen.benchmarks.lines import Line, append
from hybridgen.benchmarks.readme import filled, sections
from hybridgen.benchmarks.spread import Spread, seconds_a_token, speed_ups, spread
from hybridgen.benchmarks.tables import BRIEF, comparisons, table, tables

Files = tuple[Path, Path]


def rows(text: str) -> dict[str, dict[str, str]]:
    """Contender -> title -> cell, of one Markdown table."""
    cut = [row.replace(r"\|", "/").strip("|").split("|") for row in text.splitlines()]
    head, _, *body = [[cell.strip() for cell in row] for row in cut]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def quick() -> list[Line]:
    return [
        line(
            "llm",
            [4, 2, 2, 2, 3],
            first=[0.01, 0.03, 0.02],
            floor={"bandwidth": 2e10, "bytes": 2e7, "seconds": 1e-3},
        ),
        line(
            "speculative, K = 4",
            [1, 1, 0.5, 1, 1.5],
            options={"num_drafts": 4},
            statistics={"tokens_per_round": 3.5, "acceptance_per_position": [0.9, 0.75]},
        ),
        line("transformers", [8, 4, 4, 4, 4]),
        line("ctranslate2"),
    ]


def test_the_figures_of_a_table() -> None:
    (among,) = comparisons(quick())
    found = rows(table(among))
    assert found["llm"] == {
        "ms/token": "2.00 (2.00 to 3.00)",
        "tokens/s": "500",
        "x llm": "1",
        "x transformers": "2.00 (2.00 to 2.00)",
        "tokens/round": "",
        "accepted by position": "",
        "first token, ms": "20.0",
        "of the floor": "50%",
    }
    drafted = found["speculative, K = 4"]
    # Of each repeat 4, 2, 4, 2, 2: the ratio of medians would be 2 with another spread.
    assert drafted["x llm"] == "2.00 (2.00 to 4.00)"
    assert drafted["x transformers"] == "4.00 (4.00 to 8.00)"
    assert drafted["tokens/round"] == "3.50"
    assert drafted["accepted by position"] == "0.90, 0.75"


def test_ratios_are_taken_within_a_repeat() -> None:
    """A machine that slows down threefold meanwhile changes no ratio."""
    drift = [1, 1.5, 2, 2.5, 3]
    base, other = line("llm", [2 * each for each in drift]), line("slm", drift)
    assert speed_ups(other, base) == pytest.approx([2] * 5)
    assert spread(speed_ups(other, base)) == pytest.approx(Spread(2, 2, 2))


def test_a_wrong_text_has_its_reason_and_no_speed() -> None:
    (among,) = comparisons(quick())
    found = rows(table(among))["ctranslate2"]
    assert found.pop("ms/token") == "no speed, wrong: token 3 / is no choice"
    assert set(found.values()) == {""}
    assert seconds_a_token(line("llm", [1, 2], text="wrong: it has times all the same")) == []


def test_nothing_is_compared_with_a_wrong_baseline() -> None:
    (among,) = comparisons([line("llm"), line("transformers", [2, 2, 2])])
    assert "x llm" not in rows(table(among))["transformers"]


def test_few_repeats_show_the_least_and_the_most() -> None:
    assert spread([3, 1, 2, 9]) == (2.5, 1, 9)
    assert spread([3, 1, 2, 9, 4]) == (3, 2, 4)
    assert spread([]) is None
    assert "the least and the most of 3 repeats" in tables([line("llm", [1, 2, 3])])
    assert "the quartiles of 5 repeats" in tables([line("llm", [1, 2, 3, 4, 5])])


def test_the_headline_says_what_was_run() -> None:
    said = tables(quick()).splitlines()[0]
    for part in (
        "**quick, embedded.**",
        "CPU, AVX512; 2 threads",
        "SLM in float32, LLM in bfloat16",
        "4 prompts (code), 25 new tokens each; greedy",
        "torch 2.14.1, transformers 5.24.0; commit 0123456789ab; 2026-01-02",
        "takes 1.00 ms a token at the 20 GB/s",
    ):
        assert part in said
    sampled = {"batch": 4, "sampling": {"temperature": 0.6, "top_k": 20, "top_p": 0.95}}
    said = tables([line("llm", [1], setting=sampled, facts={"agreement": 0.8})])
    assert "embedded, agreement 0.8.**" in said
    assert "4 at a time; temperature 0.6, top-k 20, top-p 0.95" in said
    int8 = {"dtypes": {"slm": "bfloat16", "llm": "bfloat16"}, "weights": {"slm_weights": "int8"}}
    said = tables([line("llm", [1], setting=int8)])
    assert "SLM in bfloat16, its weights in int8, LLM in bfloat16" in said


def test_settings_and_machines_have_tables_of_their_own() -> None:
    other = CONDITIONS | {"machine": {"device": "CPU, AVX2"}}
    lines = [
        line("llm", [1]),
        line("llm", [1], setting={"batch": 2}),
        line("llm", [1], facts={"agreement": 0.5}),
        line("llm", [1], conditions=other),
        line("slm", [1]),
    ]
    assert [len(each.lines) for each in comparisons(lines)] == [2, 1, 1, 1]


def test_what_is_measured_again_counts_as_measured_last() -> None:
    (among,) = comparisons([line("llm", [1]), line("slm", [1]), line("llm", [9])])
    assert rows(table(among))["llm"]["ms/token"] == "9.00 (9.00 to 9.00)"
    options = [line("llm", [1], options={"x": x}) for x in (1, 2)]
    assert len(comparisons(options)[0].lines) == 2


def test_calls_of_kernels_have_columns_of_their_own() -> None:
    case = line(
        "rows 4",
        [0.002, 0.002, 0.002],
        suite="kernels",
        pair="linear",
        statistics={"times_faster": {"torch": 1.5, "flash-attn": "absent"}, "target": None},
        floor={"bandwidth": 2e10, "bytes": 20000.0, "seconds": 1e-6},
    )
    case = Line(**{**vars(case), "setting": {"device": "cpu", "threads": 2}})
    said = tables([case])
    assert "**kernels, linear.** CPU, AVX512; 2 threads; torch" in said
    assert rows(said.split("\n\n")[1]) == {
        "rows 4": {
            "us/call": "2.00 (2.00 to 2.00)",
            "of the floor": "50%",
            "x torch": "1.50",
            "x flash-attn": "absent",
        }
    }


def test_sections_are_filled_and_the_rest_is_left() -> None:
    text = "a\n<!-- bench: x begin -->\nold\n\nold\n<!-- bench: x end -->\nb\n"
    new = filled(text, {"x": lambda: "new \\1"})
    assert new == "a\n<!-- bench: x begin -->\nnew \\1\n<!-- bench: x end -->\nb\n"
    assert filled(new, {"x": lambda: "new \\1"}) == new
    assert sections(text) == {"x": "old\n\nold"}
    with pytest.raises(ValueError, match="1 marks make 0 sections"):
        filled("<!-- bench: x begin -->\n", {})
    with pytest.raises(KeyError):
        filled(text, {})


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Two files with sections, in the places of the READMEs."""
    found = tmp_path / "README.md", tmp_path / "benchmarks.md"
    for path, names in zip(found, (["speed"], ["quick", "gpu"]), strict=True):
        marked = [f"<!-- bench: {name} begin -->\n<!-- bench: {name} end -->\n" for name in names]
        path.write_text("".join(marked), encoding="utf-8")
    monkeypatch.setattr(report, "FILES", found)
    return found


def test_sections_show_the_lines_that_are_theirs(two_files: Files, tmp_path: Path) -> None:
    results = tmp_path / "results"
    card = {"device": "cuda:0"}
    for each in [*quick(), line("slm", [7], setting=card), line("slm", [6], suite="decode")]:
        append(results / "deep" / "some.jsonl", each)
    assert report.main([str(results), "--check"]) == 1
    assert report.main([str(results), "--write"]) == 0
    assert report.main([str(results), "--check"]) == 0
    readme, benchmarks = (path.read_text(encoding="utf-8") for path in two_files)
    shown = rows(sections(readme)["speed"].split("\n\n")[1])
    assert set(shown["llm"]) < set(BRIEF)
    assert "slm" not in shown
    parts = sections(benchmarks)
    assert "tokens/s" in parts["quick"] and "7.00" not in parts["quick"]
    assert "7.00" in parts["gpu"] and "6.00" not in parts["gpu"]
    append(results / "more.jsonl", line("lookup", [1]))
    assert report.main([str(results), "--check"]) == 1


def test_a_section_without_results_says_so(two_files: Files, tmp_path: Path) -> None:
    report.main([str(tmp_path), "--write"])
    parts = sections(two_files[1].read_text(encoding="utf-8"))
    assert parts["gpu"] == "This has not been measured yet: `hybridgen bench gpu` measures it."


def test_it_prints_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for each in quick():
        append(tmp_path / "some.jsonl", each)
    assert report.main([str(tmp_path / "some.jsonl")]) == 0
    assert capsys.readouterr().out.strip() == tables(quick())


def test_the_budget_is_left_as_it_stands_without_a_cuda_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    text = "<!-- bench: budget begin -->\nas it was\n<!-- bench: budget end -->"
    assert filled(text, report.contents([], text)) == text


def test_the_files_are_what_the_report_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The prediction too, where it can be made."""
    given: list[Any] = ["--check"]
    assert report.main(given) == 0, capsys.readouterr().out
