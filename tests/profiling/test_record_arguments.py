"""Who writes for which arguments of `generate_with_profile`, and what it refuses; the command."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair
from toy_strategy import Relay

from hybridgen import GenerationStrategy, HybridGenerator
from hybridgen.cli import main
from hybridgen.profiling import ProfileResult
from hybridgen.profiling.quality import Sweep

SETTINGS = {"max_new_tokens": 8, "seed": 1, "ignore_eos": True}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32, max_seq_len=100)


class Own(GenerationStrategy):
    def generate(self, **given: Any) -> Any:
        raise AssertionError("it must not run")


CHOSEN: list[tuple[dict[str, Any], str, str]] = [
    ({}, "slm", "uncertainty"),
    ({"routing_metric": "entropy"}, "profiled_entropy", "entropy"),
    ({"routing_metric": "entropy", "enable_routing": False}, "slm", "entropy"),
    ({"enable_routing": False}, "slm", "uncertainty"),
    ({"enable_routing": True}, "profiled_uncertainty", "uncertainty"),
    ({"threshold": 0.5}, "profiled_uncertainty", "uncertainty"),
    ({"threshold": 0}, "profiled_uncertainty", "uncertainty"),
    ({"llm_fraction": 0.2, "routing_metric": "entropy"}, "profiled_entropy", "entropy"),
    ({"strategy": "entropy", "threshold": 2}, "profiled_entropy", "entropy"),
    ({"strategy": "entropy", "routing_metric": "entropy"}, "profiled_entropy", "entropy"),
    ({"strategy": "speculative", "num_drafts": 3}, "speculative", "uncertainty"),
    ({"strategy": "llm", "routing_metric": "entropy"}, "llm", "entropy"),
    ({"strategy": "slm", "enable_routing": False}, "slm", "uncertainty"),
]


@pytest.mark.parametrize("given, strategy, metric", CHOSEN, ids=str)
def test_who_writes(
    generator: HybridGenerator, given: dict[str, Any], strategy: str, metric: str
) -> None:
    found = generator.generate_with_profile("def", **SETTINGS, **given)
    assert (found.strategy, found.metric) == (strategy, metric)
    assert (found.threshold is not None) == strategy.startswith("profiled")
    if given.get("threshold") is not None:
        assert found.threshold == given["threshold"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "slm", "threshold": 0.5}, "^threshold .*strategy='slm'"),
    ({"strategy": "llm", "llm_fraction": 0.5}, "^llm_fraction .*strategy='llm'"),
    ({"enable_routing": False, "threshold": 0.5}, "^threshold .*enable_routing=False"),
    ({"strategy": "speculative", "enable_routing": True}, "^enable_routing=True .*'speculative'"),
    ({"strategy": "entropy", "enable_routing": False}, "^enable_routing=False .*'entropy'"),
    ({"strategy": "entropy", "routing_metric": "uncertainty"}, "^routing_metric='uncertainty'"),
    ({"routing_metric": "epistemic"}, "^routing_metric must be"),
    ({"enable_routing": 1}, "^enable_routing must be"),
    ({"strategy": "speculativ"}, "did you mean 'speculative'"),
    ({"threshold": 0.5, "llm_fraction": 0.5}, "threshold"),
    ({"num_draft": 4}, "did you mean 'num_drafts'"),
    ({"num_drafts": 99}, "^num_drafts must be"),
    ({"print_stats": "yes"}, "^print_stats must be"),
]


@pytest.mark.parametrize("given, message", REFUSED, ids=str)
def test_contradictions_are_refused_by_name(
    generator: HybridGenerator, given: dict[str, Any], message: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(type(generator.llm), "__call__", None)  # no model may run
    with pytest.raises((ValueError, TypeError), match=message):
        generator.generate_with_profile("def", **SETTINGS, **given)


@pytest.mark.parametrize("prompt", [["a", "b"], ["a"], [[5, 6]]], ids=str)
def test_a_list_of_prompts_is_refused(generator: HybridGenerator, prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"^prompt must be one prompt"):
        generator.generate_with_profile(prompt, **SETTINGS)


def test_a_strategy_without_rounds_is_refused(generator: HybridGenerator) -> None:
    with pytest.raises(ValueError, match=r"^strategy='own' cannot be profiled"):
        try:
            generator.strategies["own"] = Own()
            generator.generate_with_profile("def", strategy="own", **SETTINGS)
        finally:
            del generator.strategies["own"]


def test_a_strategy_of_rounds_of_ones_own_is_profiled(generator: HybridGenerator) -> None:
    generator.strategies["relay"] = Relay()
    try:
        found = generator.generate_with_profile("def", strategy="relay", **SETTINGS)
        expected = generator.generate("def", "relay", print_stats=False, **SETTINGS)
    finally:
        del generator.strategies["relay"]
    assert [token.token_id for token in found] == expected.tokens
    assert found.stats["strategy"] == "relay"


def test_the_summary_is_printed_where_it_is_asked_for(
    generator: HybridGenerator, capsys: Any
) -> None:
    generator.generate_with_profile("def", **SETTINGS)
    assert capsys.readouterr().out == ""
    found = generator.generate_with_profile("def", print_stats=True, threshold=0.5, **SETTINGS)
    assert capsys.readouterr().out == found.summary + "\n"
    assert "profiled_uncertainty" in found.summary


# The command.


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """The command takes SIGINT for itself: give it back to the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def command(tiny_pair: TinyPair, *options: str) -> int:
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    return main(["profile", "def", *models, "--max-new-tokens", "8", "--seed", "1", *options])


def test_the_command_prints_the_summary_and_writes_files(
    tiny_pair: TinyPair, tmp_path: Path, capsys: Any
) -> None:
    files = {"--json": tmp_path / "x.json", "--html": tmp_path / "x.html"}
    named = [word for option, path in files.items() for word in (option, str(path))]
    assert command(tiny_pair, "--threshold", "0.5", "--metric", "entropy", *named) == 0
    found = ProfileResult.load(files["--json"])
    assert found.strategy == "profiled_entropy" and found.threshold == 0.5
    assert capsys.readouterr().out == found.summary + "\n"
    assert json.loads(files["--json"].read_text()) and "<html" in files["--html"].read_text()


def test_the_command_refuses_before_a_model_is_loaded(tiny_pair: TinyPair, capsys: Any) -> None:
    assert command(tiny_pair, "--strategy", "slm", "--threshold", "1", "--slm", "/nowhere") == 1
    assert "error: threshold routes tokens" in capsys.readouterr().err
    assert command(tiny_pair, "--num-drafts", "99", "--slm", "/nowhere") == 1
    assert "--num-drafts must be" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        command(tiny_pair, "--metric", "epistemic")
    assert left.value.code == 2


def test_the_command_sweeps_thresholds(tiny_pair: TinyPair, tmp_path: Path, capsys: Any) -> None:
    files = tmp_path / "x.json", tmp_path / "x.png"
    named = ["--json", str(files[0]), "--plot", str(files[1])]
    assert command(tiny_pair, "--sweep", "3", "--metric", "entropy", *named) == 0
    found = Sweep.load(files[0])
    assert capsys.readouterr().out == f"{found}\n"
    assert {point.router for point in found.points} == {"slm", "entropy", "random", "llm"}
    assert files[1].stat().st_size > 0


@pytest.mark.parametrize("option", ["--threshold=1", "--llm-fraction=0.1", "--html=x", "--routing"])
def test_a_sweep_tries_every_router(tiny_pair: TinyPair, capsys: Any, option: str) -> None:
    assert command(tiny_pair, "--sweep", option, "--slm", "/nowhere") == 1
    name = option.partition("=")[0]
    assert f"error: {name} has no meaning with --sweep" in capsys.readouterr().err
    assert command(tiny_pair, "--sweep", "0", "--slm", "/nowhere") == 1
    assert "error: --sweep must be at least 1" in capsys.readouterr().err


def test_the_command_without_matplotlib_says_so_at_once(
    tiny_pair: TinyPair, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("hybridgen.cli_profile.find_spec", lambda name: None)
    assert command(tiny_pair, "--plot", "x.png", "--slm", "/nowhere") == 1
    assert "--plot needs matplotlib" in capsys.readouterr().err


def test_the_help_names_its_options(capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["profile", "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    for option in (
        "--sweep [N]",
        "--metric",
        "--json FILE",
        "--html FILE",
        "--plot FILE",
        "--threshold X",
    ):
        assert option in out
