"""The benchmark runs on any pair, and README shows what the raw results say."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import TinyPair

ROOT = Path(__file__).resolve().parent.parent


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_readme_shows_the_raw_results() -> None:
    assert run("benchmarks/readme.py", "--check").returncode == 0, "run benchmarks/readme.py"


def test_every_contender_is_measured(tiny_pair: TinyPair, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--slm", tiny_pair.slm, "--llm", tiny_pair.llm, "--out", out]
    finished = run(
        "benchmarks/speed.py", *options, "--new-tokens", 8, "--repeats", 2, "--threads", 1
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(out.read_text())
    assert set(report["modes"]) == {"greedy", "sampled"}
    for results in report["modes"].values():
        assert {"transformers", "transformers assisted", "llm", "speculative"} <= set(results)
        for result in results.values():
            assert len(result["seconds"]) == 2 * 3
            assert result["milliseconds_per_token"] > 0
    assert report["floor"]["llm_milliseconds"] > 0
    assert "ms/token" in finished.stdout
