"""`hybridgen bench`: every suite runs, as little of it as can be; lines, tables, exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridgen.benchmarks import ours
from hybridgen.benchmarks.command import HELP
from hybridgen.benchmarks.lines import Line, read
from hybridgen.benchmarks.ours import Ours, Work, Written
from hybridgen.cli import main


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny pair is built once."""
    return tmp_path_factory.mktemp("scratch")


def bench(suite: str, out: Path, scratch: Path, *options: object) -> int:
    where = ["--device", "cpu", "--threads", torch.get_num_threads(), "--scratch", scratch]
    given = ["bench", suite, "--dry-run", "--out", out, *where, *options]
    return main([*map(str, given)])


@pytest.mark.parametrize("suite", HELP)
def test_every_suite_runs(
    suite: str, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    status = bench(suite, out, scratch)
    told = capsys.readouterr()
    found = read([out])
    wrong = [(line.contender, line.text) for line in found if not line.is_right]
    assert (status, wrong) == (0, []), told.err
    assert {line.suite for line in found} <= {suite, "kernels"}
    for line in found:
        assert len(line.seconds) >= 2 and line.conditions["commit"] and line.conditions["versions"]
        assert line.contender in told.out
    if suite != "kernels":
        names = {line.contender for line in found}
        assert {"llm", "transformers"} <= names or suite == "routing"
        assert "hybridgen bench" in found[0].conditions["command"]
        assert all(line.floor["seconds"] > 0 for line in found if line.contender == "llm")


def test_what_is_there_is_not_measured_again(
    tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    only = ("--only", "K = 4$")
    assert bench("quick", out, scratch, *only) == 0
    held = out.read_text()
    assert {line.contender for line in read([out])} == {"llm", "speculative, K = 4"}
    assert bench("quick", out, scratch, *only) == 1
    assert "--resume adds what it lacks" in capsys.readouterr().err
    assert bench("quick", out, scratch, *only, "--resume") == 0
    assert out.read_text() == held and "already" in capsys.readouterr().err
    assert bench("quick", out, scratch, "--only", "slm", "--resume", "--minutes", "1e-9") == 0
    assert out.read_text() == held and "no time left" in capsys.readouterr().err
    assert bench("quick", out, scratch, "--only", "slm", "--resume") == 0
    assert "slm" in {line.contender for line in read([out])}


def test_experiments_are_picked_by_their_titles(tmp_path: Path, scratch: Path) -> None:
    out = tmp_path / "lines.jsonl"
    assert bench("gpu", out, scratch, "--experiment", "budgets|^batch", "--only", "slm") == 0
    found = read([out])
    assert {line.setting["experiment"] for line in found} == {"budgets", "batches"}
    assert "--experiment 'budgets|^batch'" in found[0].conditions["command"]


def test_a_wrong_text_fails_the_command(
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = Ours.write

    def spoiled(self: Ours, work: Work) -> Written:
        written = write(self, work)
        if self.name != "speculative, auto" or work.new_tokens == 1:
            return written
        return Written([[*new[:-1], (new[-1] + 1) % 50] for new in written.tokens], written.stats)

    monkeypatch.setattr(Ours, "write", spoiled)
    out = tmp_path / "lines.jsonl"
    assert bench("quick", out, scratch, "--only", "auto") == 1
    texts = {line.contender: line for line in read([out]) if not line.setting["sampling"].get("p")}
    assert not texts["speculative, auto"].seconds and texts["llm"].seconds
    assert "no choice of the llm" in capsys.readouterr().out


def test_a_slow_down_fails_the_comparison_with_what_was(
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sleep in every round of one strategy, many times as long as the round."""
    from time import sleep

    from hybridgen.engine import steps
    from hybridgen.strategies import drafts

    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    asked = ("--only", "K = 4|^transformers$", "--repeats", 5)
    assert bench("quick", before, scratch, *asked) == 0
    append = steps.append

    def slow(*given: Any, **named: Any) -> Any:
        sleep(0.05)
        return append(*given, **named)

    monkeypatch.setattr(drafts, "append", slow)
    capsys.readouterr()
    assert bench("quick", after, scratch, *asked, "--against", before) == 1
    told = capsys.readouterr().out
    slower = [line for line in told.splitlines() if " slower " in line]
    assert slower and all("speculative, K = 4" in line for line in slower)


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--slm", "a"], "--slm is given without --llm"),
        (["--llm", "a", "--pair", "tiny"], "--pair names both models"),
        (["--repeats", "0"], "--repeats must be above 0, got 0"),
        (["--against", "nowhere.jsonl"], "--against nowhere.jsonl does not exist"),
        (["--only", "("], "--only '(' is no regular expression"),
        (["--experiment", "["], "--experiment '[' is no regular expression"),
        (["--experiment", "turns"], "--experiment 'turns' is in no title of the suite quick"),
        (["--pair", "tiny@2"], "an agreement is between 0 and 1, not 2.0"),
        (["--pair", "nothing"], "there is no pair 'nothing'"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_options_are_refused_by_name(
    options: list[str],
    reason: str,
    tmp_path: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["bench", "quick", "--out", str(tmp_path / "new.jsonl"), "--device", "cpu"]
    assert main([*given, "--scratch", str(scratch), *options]) == 1
    assert reason in capsys.readouterr().err


def test_statistics_of_several_calls_add_up() -> None:
    one = {"total_tokens": 6, "llm_tokens": 4, "decode_steps": 2, "draft_generated": 8}
    one |= {"draft_accepted": 4, "accepted_per_position": [2, 1, 1, 0], "num_drafts": 4}
    two = one | {"total_tokens": 4, "decode_steps": 3, "draft_generated": 12, "draft_accepted": 1}
    two |= {"accepted_per_position": [1, 0, 0, 0]}
    found = ours.statistics([one, two])
    assert found["tokens_per_round"] == 2 and found["acceptance_rate"] == 5 / 20
    assert found["acceptance_per_position"] == [3 / 5, 1 / 5, 1 / 5, 0]
    assert found["llm_fraction"] == 0.8


def test_a_line_is_what_it_was_when_it_is_read_back(tmp_path: Path) -> None:
    from hybridgen.benchmarks.lines import append

    line = Line("quick", "tiny", "llm", {"batch": 1}, "right", 8, [0.1, 0.2], [0.01])
    out = tmp_path / "folder" / "lines.jsonl"
    append(out, line)
    append(out, line)
    assert read([out]) == [line, line]
    out.write_text(json.dumps({"schema": 0}) + "\n")
    with pytest.raises(ValueError, match=r"lines.jsonl:1 is no result of schema 1"):
        read([out])
