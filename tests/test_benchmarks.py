"""The benchmarks run, on any pair and for every kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TinyPair
from warm import Warm

ROOT = Path(__file__).resolve().parent.parent


def measure(warm: Warm, program: str, *options: object) -> "subprocess.CompletedProcess[str]":
    return warm.run(["-m", f"benchmarks.{program}", *map(str, options)], ROOT)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    # Within a worker of pytest-xdist, pytest-benchmark would time nothing.
    outer = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**outer, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_kernel_is_timed_without_dependent_launches_too() -> None:
    """On a CPU there are none: only that it runs."""
    command = ("-m", "pytest", "benchmarks/kernels/bench_layers.py", "--smoke", "--device", "cpu")
    finished = run(*command, "-p", "no:cacheprovider", "--pdl")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "x itself without PDL" in finished.stdout


def test_the_first_case_of_every_kernel_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    finished = run(
        *("-m", "pytest", "benchmarks/kernels", "--smoke", "--device", "cpu"),
        *("-p", "no:cacheprovider", f"--benchmark-json={out}"),
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    measured = json.loads(out.read_text())["benchmarks"]
    files = {path.stem for path in (ROOT / "benchmarks" / "kernels").glob("bench_*.py")}
    assert {Path(m["fullname"].split("::")[0]).stem for m in measured} == files
    for result in measured:
        facts = result["extra_info"]
        assert facts["nbytes"] > 0 and facts["microseconds_per_call"] > 0
        assert facts["share_of_bandwidth"] > 0
    assert "measured in this run" in finished.stdout
    assert "target" not in finished.stdout  # those are a GPU's


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "kernels")
    import harness

    class Wrong:
        """An op that gives the other results."""

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return -x

        def reference(self, x: torch.Tensor) -> torch.Tensor:
            return x

    case = harness.Case("wrong", Wrong(), [(torch.ones(2),)], nbytes=8, agree=harness.close)
    not_reached = None
    with pytest.raises(AssertionError, match="wrong by 2"):
        harness.measure(case, not_reached, torch.device("cpu"), 1e9)


def test_reading_prompts_is_measured(warm: Warm, tiny_pair: TinyPair, tmp_path: Path) -> None:
    out = tmp_path / "prefill.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out]
    finished = measure(warm, "prefill", *options, "--lengths", "20,9", "--repeats", 2)
    assert finished.returncode == 0, finished.stderr
    models = json.loads(out.read_text())["models"]
    assert set(models) == {"slm", "llm"}
    for result in models.values():
        assert len(result["seconds"]["together"]) == len(result["seconds"]["one by one"]) == 2
        assert result["tokens_per_second"] > 0 and result["times_faster"] > 0


def test_a_long_list_is_measured_against_its_batches(
    warm: Warm, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out, "--threads", 1]
    few = ["--prompts", 5, "--rows", 2, "--new-tokens", 6, "--repeats", 2]
    finished = measure(warm, "many_prompts", *options, *few)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(out.read_text())
    assert [len(runs) for runs in report["seconds"].values()] == [2, 2]
    assert len(report["lengths"]) == 5 and max(report["lengths"]) <= 6
    assert report["at best"] >= 1
    assert report["command"].startswith("python -m benchmarks.many_prompts ")


def test_the_door_into_transformers_is_measured(
    warm: Warm, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out, "--threads", 1]
    finished = measure(warm, "bridge", *options, "--new-tokens", 6, "--repeats", 1)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(out.read_text())
    assert report["same_texts"] and report["accelerated / HybridGenerator"] > 0
    assert len(report["transformers / accelerated"]) == 3


def test_turns_are_measured(warm: Warm, tiny_pair: TinyPair, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out, "--threads", 1]
    few = ["--turns", 3, "--question", 9, "--new-tokens", 5, "--repeats", 1]
    finished = measure(warm, "turns", *options, *few)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(out.read_text())
    assert report["same_texts"]["ours"] and len(report["seconds"]) == 4


def test_int8_weights_are_measured(tiny_pair: TinyPair, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out, "--threads", 1]
    few = ["--count", 2, "--new-tokens", 6, "--tokens", 40, "--repeats", 2, "--positions", 256]
    finished = run("-m", "benchmarks.int8", *options, *few)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(out.read_text())
    for role in ("slm", "llm"):
        plain, int8 = report["models"][role]["plain"], report["models"][role]["int8"]
        assert int8["bytes_a_step"] < 0.6 * plain["bytes_a_step"]
        assert abs(int8["bits_a_token"] - plain["bits_a_token"]) < 0.5
        assert set(int8["milliseconds"]) == {"1", "5"}
    assert set(report["rounds"]) == {"plain", "int8 SLM", "int8 both"}
    assert report["rounds"]["plain"]["greedy"]["tokens_a_round"] >= 1


def test_what_numba_gives_is_measured(warm: Warm, tiny_pair: TinyPair, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out, "--threads", 1]
    few = ["--behind", 3, "--repeats", 3, "--texts", 2, "--new-tokens", 4]
    finished = measure(warm, "compiled", *options, *few)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(out.read_text())
    assert all(text["torch / numba"]["median"] > 0 for text in report["texts"].values())
    for model in report["models"].values():
        for part in ("1 behind 3", "products of 5"):
            assert model[part]["torch / numba"]["median"] > 0
