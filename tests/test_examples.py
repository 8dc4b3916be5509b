"""The example programs run as their first lines say, without a network."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
COMMANDS = [
    command
    for example in EXAMPLES
    for command in re.findall(r"^ *python (examples/.*)$", example.read_text(), re.MULTILINE)
]


def test_every_example_says_how_it_is_run() -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        str(example.relative_to(ROOT)) for example in EXAMPLES
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(warm: Warm, command: str) -> None:
    done = warm.run(shlex.split(command), ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 200


def test_the_comparison_has_a_line_and_a_text_of_each_strategy(warm: Warm) -> None:
    out = warm.run(["examples/compare_strategies.py"], ROOT).stdout
    for name in ("speculative", "uncertainty", "entropy", "llm", "slm"):
        assert re.search(rf"^{name} +[1-9]\d* ", out, re.MULTILINE)
        assert f"--- {name} ---\ndef quicksort(items):" in out


def test_an_option_of_ones_own_is_an_option_of_the_command(warm: Warm) -> None:
    def run(options: str) -> Any:
        return warm.run(["examples/own_strategy.py", *shlex.split(options)], ROOT)

    assert "--words N" in run("--help").stdout
    few, many = (
        run(f"'def area(r):' --strategy opener --words {n} --seed 1 --stats json").stderr
        for n in (1, 8)
    )
    assert '"strategy": "opener"' in few and few != many
    refused = run("'def area(r):' --strategy opener --words 9")
    assert refused.returncode == 1
    assert "words must be an integer from 1 to 8, got 9" in refused.stderr
