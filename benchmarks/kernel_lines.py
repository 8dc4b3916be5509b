"""The suite "kernels": the files of benchmarks/kernels, run by pytest, as lines of results."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hybridgen.benchmarks.conditions import surroundings
from hybridgen.benchmarks.contender import Place
from hybridgen.benchmarks.lines import Line

FOLDER = Path(__file__).resolve().parent / "kernels"


def run_kernels(command: str, place: Place, first_only: bool = False) -> list[Line]:
    """Check and time every case; RuntimeError where pytest fails, with what it said.

    first_only  of each file, its smallest case alone
    """
    device = torch.device(place.device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.json"
        asked = ["--device", device.type, f"--benchmark-json={out}", "--benchmark-save-data"]
        asked += ["--smoke"] if first_only else []
        asked += ["--pdl"] if device.type == "cuda" else []
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        outer = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST_")}
        finished = subprocess.run(
            [*pytest, str(FOLDER), *asked], capture_output=True, text=True, env=outer
        )
        if finished.returncode:
            raise RuntimeError(f"the kernels' benchmarks failed:\n{finished.stdout[-4000:]}")
        told = json.loads(out.read_text())
    found = surroundings(command, device)
    return list(_lines(told, place, found))


def _lines(told: Mapping[str, Any], place: Place, found: Mapping[str, Any]) -> Iterator[Line]:
    """One for each case; a call counts as a token."""
    for case in told["benchmarks"]:
        facts = dict(case["extra_info"])
        calls, bandwidth = facts.pop("calls_per_round"), 1e9 * facts.pop("bandwidth_gb_per_s")
        nbytes = facts.pop("nbytes")
        yield Line(
            suite="kernels",
            pair=Path(case["fullname"].split("::")[0]).stem.removeprefix("bench_"),
            contender=facts.pop("case"),
            setting={"device": place.device, "threads": place.threads},
            text="right",  # else pytest would have failed
            tokens=calls,
            seconds=case["stats"]["data"],
            statistics=facts,
            floor={"bandwidth": bandwidth, "bytes": nbytes, "seconds": nbytes / bandwidth},
            conditions=dict(found),
        )
