"""What type checkers say of calls: results by the prompt's form, and arguments that are wrong.

mypy reads the user's file of tests/types, with stand-ins for torch and numpy: that is quicker.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from hybridgen.engine.placement import DTYPES
from hybridgen.named_pairs import PAIRS
from hybridgen.names import DtypeName, PairName, RoutingMetric, StrategyName
from hybridgen.profiling.profile import ROUTING_METRICS
from hybridgen.strategies.declarations import BUILT_IN, THRESHOLDS

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "types"
USER = FOLDER / "user.py"
NOTE = re.compile(r"^user\.py:(\d+): note: Revealed type is \"(.*)\"$", re.MULTILINE)
ERROR = re.compile(r"^user\.py:(\d+): error: .*\[([\w-]+)\]$", re.MULTILINE)
EXPECTED = re.compile(r"# (reveal|error): (.*)$")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that mypy says of the user's file."""
    pytest.importorskip("mypy")
    cache = tmp_path_factory.mktemp("mypy")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", "mypy.ini"),
            *("--cache-dir", str(cache), USER.name),
        ],
        cwd=FOLDER,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": f"{FOLDER / 'stubs'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return done.stdout


def expected(kind: str) -> dict[int, str]:
    """Line -> what the comment at its end says."""
    lines = USER.read_text(encoding="utf-8").splitlines()
    found = ((number, EXPECTED.search(line)) for number, line in enumerate(lines, 1))
    return {number: match[2] for number, match in found if match and match[1] == kind}


def test_results_have_the_type_that_goes_with_the_prompt(said: str) -> None:
    revealed = {int(line): re.sub(r"\w+\.(?=\w)", "", text) for line, text in NOTE.findall(said)}
    assert len(revealed) > 10
    assert revealed == expected("reveal")


def test_wrong_arguments_and_nothing_else_are_errors(said: str) -> None:
    found = {int(line): code for line, code in ERROR.findall(said)}
    assert len(found) > 10
    assert found == expected("error"), said


def test_the_names_of_the_types_are_those_of_the_checks() -> None:
    assert get_args(StrategyName) == tuple(each.name for each in BUILT_IN)
    assert get_args(RoutingMetric) == tuple(THRESHOLDS) == ROUTING_METRICS
    assert get_args(DtypeName) == tuple(DTYPES)
    assert get_args(PairName) == tuple(PAIRS)
