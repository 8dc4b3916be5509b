"""The example programs run as their first lines say, without a network."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
COMMANDS = [
    command
    for example in EXAMPLES
    for command in re.findall(r"^ *python (examples/.*)$", example.read_text(), re.MULTILINE)
]


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True
    )


def test_every_example_says_how_it_is_run() -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        str(example.relative_to(ROOT)) for example in EXAMPLES
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(command: str) -> None:
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 200


def test_the_comparison_has_a_line_and_a_text_of_each_strategy() -> None:
    out = run("examples/compare_strategies.py").stdout
    for name in ("speculative", "uncertainty", "entropy", "llm", "slm"):
        assert re.search(rf"^{name} +[1-9]\d* ", out, re.MULTILINE)
        assert f"--- {name} ---\ndef quicksort(items):" in out


def test_an_option_of_ones_own_is_an_option_of_the_command() -> None:
    program = "examples/own_strategy.py"
    assert "--words N" in run(f"{program} --help").stdout
    few, many = (
        run(f"{program} 'def area(r):' --strategy opener --words {n} --seed 1 --stats json").stderr
        for n in (1, 8)
    )
    assert '"strategy": "opener"' in few and few != many
    refused = run(f"{program} 'def area(r):' --strategy opener --words 9")
    assert refused.returncode == 1
    assert "words must be an integer from 1 to 8, got 9" in refused.stderr
