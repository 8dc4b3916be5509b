"""The command: text on stdout, everything else on stderr, and exit codes that scripts can use."""

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import hybridgen.generator
from hybridgen.cli import build_parser, main
from hybridgen.fields import Field, choice, flag, integer
from hybridgen.result import GenerationResult, format_stats
from hybridgen.strategies.declarations import Declaration

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
STATS = {"strategy": "speculative", "total_tokens": 3, "slm_tokens": 2, "llm_tokens": 1, "seed": 5}


class StubGenerator:
    """Stands in for `HybridGenerator`: keeps its arguments, and writes or raises `outcome`."""

    outcome: Any = "new text"
    made: tuple[tuple[Any, ...], dict[str, Any]]
    asked: tuple[str, dict[str, Any]]

    def __init__(self, *models: Any, **options: Any) -> None:
        StubGenerator.made = (models, options)

    def generate(self, prompt: str, **options: Any) -> GenerationResult:
        StubGenerator.asked = (prompt, options)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        if options["stream"] is not None:
            for piece in self.outcome:
                options["stream"](piece)
        return GenerationResult(self.outcome, [1, 2, 3], dict(STATS), prompt + self.outcome)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """The command takes SIGINT for itself: give it back to the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubGenerator]:
    monkeypatch.setattr(hybridgen.generator, "HybridGenerator", StubGenerator)
    monkeypatch.setattr(StubGenerator, "outcome", "new text")
    return StubGenerator


def test_the_text_is_on_stdout_and_the_statistics_on_stderr(stub: Any, capfd: Any) -> None:
    assert main(["a prompt"]) == 0
    out, err = capfd.readouterr()
    assert out == "new text\n"
    assert err == format_stats(STATS, ["Seed: {seed}"]) + "\n"
    assert stub.made == ((None, None), {"device": None, "dtype": None})
    prompt, options = stub.asked
    assert prompt == "a prompt"
    assert callable(options.pop("stream"))
    assert options == {"strategy": "speculative", "print_stats": False}, "the library's defaults"


def test_statistics_as_one_json_object_or_not_at_all(stub: Any, capfd: Any) -> None:
    assert main(["p", "--stats", "json"]) == 0
    assert json.loads(capfd.readouterr().err) == STATS
    assert main(["p", "--stats", "none"]) == 0
    assert capfd.readouterr().err == ""


def test_no_stream_prints_the_same_text_at_the_end(stub: Any, capfd: Any) -> None:
    assert main(["p", "--no-stream"]) == 0
    assert stub.asked[1]["stream"] is None
    assert capfd.readouterr().out == "new text\n"


def test_a_text_that_ends_its_line_gets_no_second_line_end(stub: Any, capfd: Any) -> None:
    stub.outcome = "new text\n"
    assert main(["p"]) == 0
    assert capfd.readouterr().out == "new text\n"


def test_every_option_reaches_the_library(stub: Any) -> None:
    options = (
        "--strategy entropy --slm small --llm large --device cpu --dtype float32 "
        "--max-new-tokens 7 --temperature 0 --top-k 0 --top-p 0.9 --min-p 0.1 --num-drafts 3 "
        "--verification coupled --llm-fraction 0.25 --llm-consecutive-tokens 2 --seed 0 "
        "--stop one --stop two"
    )
    assert main(["p", *options.split()]) == 0
    assert stub.made == (("small", "large"), {"device": "cpu", "dtype": "float32"})
    stub.asked[1].pop("stream")
    assert stub.asked[1] == {
        "strategy": "entropy",
        "max_new_tokens": 7,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 0.9,
        "min_p": 0.1,
        "num_drafts": 3,
        "verification": "coupled",
        "llm_fraction": 0.25,
        "llm_consecutive_tokens": 2,
        "seed": 0,
        "stop": ["one", "two"],
        "print_stats": False,
    }
    assert main(["p", "--threshold", "0"]) == 0
    assert stub.asked[1]["threshold"] == 0


def test_the_commands_strategies_are_the_librarys() -> None:
    from hybridgen.strategies import built_in_strategies

    for name in built_in_strategies():
        assert build_parser().parse_args(["p", "--strategy", name]).strategy == name


@pytest.mark.parametrize("text", ["héllo\n", "", "a - b"])
def test_a_dash_reads_the_prompt_from_stdin_as_it_is(
    stub: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert main(["-"]) == 0
    assert stub.asked[0] == text


def test_stdin_that_is_not_text_is_an_error(
    stub: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff\xfe")))
    assert main(["-"]) == 1
    assert capfd.readouterr().err.startswith("hybridgen: error: the prompt on stdin is not UTF-8")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("top_p must be\nat most 1"),
        TypeError("bad type"),
        RuntimeError("model broke"),
        OSError("no such folder"),
        MemoryError(),
    ],
)
def test_an_error_is_one_line_without_traceback_and_exit_1(
    stub: Any, capfd: Any, error: Exception
) -> None:
    stub.outcome = error
    assert main(["p"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    reason = " ".join(str(error).split()).replace("top_p", "--top-p") or "MemoryError"
    assert err == f"hybridgen: error: {reason}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["p", "q"],
        ["p", "--top-k", "many"],
        ["p", "--strategy", "best"],
        ["p", "--stats", "xml"],
        ["p", "--dtype", "int8"],
        ["p", "--unknown"],
        ["p", "--temp", "1"],
    ],
)
def test_wrong_usage_is_exit_2(stub: Any, capfd: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("usage: hybridgen")


def test_interrupted_is_exit_130_without_traceback(stub: Any, capfd: Any) -> None:
    stub.outcome = KeyboardInterrupt()
    assert main(["p"]) == 130
    assert capfd.readouterr().err == "\n"


def test_help_teaches_by_example(capfd: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capfd.readouterr().out
    assert 'hybridgen "def quicksort(items):"' in out
    assert "exit status:" in out


def test_help_waits_for_nothing() -> None:
    code = (
        "import hybridgen.cli, sys; hybridgen.cli.build_parser().format_help(); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


OWN = [
    Field("window", 3, integer(1, 8), "100 % of the tokens looked back", metavar="N"),
    Field("eager", True, flag, "do not wait"),
    Field("kind", "a", choice("a", "b"), "which one"),
]
MINE = SimpleNamespace(declaration=Declaration("looking", "nobody writes", tuple(OWN)))


def test_options_of_ones_own_strategy_are_in_the_help(capfd: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--help"], strategies={"mine": MINE})
    words = " ".join(capfd.readouterr().out.split())
    assert "{speculative,uncertainty,entropy,llm,slm,mine}" in words
    assert "mine: nobody writes (default: speculative)" in words
    assert "--window N mine: 100 % of the tokens looked back (default: 3)" in words
    assert "--eager, --no-eager mine: do not wait (default: True)" in words
    assert "--kind {a,b} mine: which one (default: a)" in words


def test_options_of_ones_own_strategy_reach_it(stub: Any, capfd: Any) -> None:
    stub.strategies = {}
    mine = {"mine": MINE, "plain": SimpleNamespace(declaration=None)}
    options = "--window 8 --no-eager --kind b"
    assert main(["p", "--strategy", "mine", *options.split()], mine) == 0
    assert stub.strategies == mine
    stub.asked[1].pop("stream")
    expected = {"strategy": "mine", "window": 8, "eager": False, "kind": "b"}
    assert stub.asked[1] == {**expected, "print_stats": False}
    assert main(["p", "--strategy", "plain"], mine) == 0
    capfd.readouterr()
    assert main(["p", "--strategy", "mine", "--window", "9"], mine) == 1
    assert "window must be an integer from 1 to 8, got 9" in capfd.readouterr().err
    assert main(["p", "--window", "3"], mine) == 1
    assert "unexpected argument 'window'" in capfd.readouterr().err


def test_a_warning_of_ours_is_one_line_and_those_of_libraries_are_silent(
    stub: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def generate(self: Any, prompt: str, **options: Any) -> GenerationResult:
        warnings.warn("the config asks\nfor more", UserWarning, stacklevel=2)
        warnings.warn_explicit("not yours", UserWarning, "theirs.py", 1, module="theirs")
        return GenerationResult("text", [1], dict(STATS), "ptext")

    monkeypatch.setattr(stub, "generate", generate)
    with warnings.catch_warnings():
        assert main(["p", "--stats", "none"]) == 0
    assert capfd.readouterr().err == "hybridgen: warning: the config asks for more\n"
