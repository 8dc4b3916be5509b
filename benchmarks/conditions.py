"""What the benchmarks share: options, and reports that begin with what was run, when, on what."""

import argparse
import json
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

import hybridgen

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "driver_version")


def pair_options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark of a pair takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--slm", help="folder of the small model; by default the embedded pair")
    add("--llm", help="folder of the large model")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", help="write the raw JSON there")
    return parser


def tell(report: dict[str, Any], out: str | None) -> None:
    """Print a report, and write it to the file ``out``."""
    text = json.dumps(report, indent=1)
    print(text)
    if out:
        Path(out).write_text(text + "\n")


def conditions(
    title: str, module: str, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Title, and what `surroundings` says of ``python -m benchmarks.module`` with ``arguments``."""
    given = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(arguments).items()
        if value is not None and name != "out"
    )
    return {"title": title, **surroundings(f"python -m benchmarks.{module} {given}", device)}


def surroundings(command: str, device: torch.device) -> dict[str, Any]:
    """Date, command, commit, machine and versions: what every result says of itself."""
    return {
        "date": date.today().isoformat(),
        "command": command,
        "commit": commit(),
        "machine": machine(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hybridgen": hybridgen.__version__,
        },
    }


def commit() -> str | None:
    """Of the checkout that runs, with "+" where files differ from it; None outside of one."""
    head = _said("git", "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    changed = _said("git", "status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")
    return head + ("+" if changed else "")


def machine(device: torch.device) -> dict[str, Any]:
    """What ran it: name, and a GPU's clocks in MHz and limit in watts, or a CPU's threads."""
    if device.type == "cuda":
        query = ",".join(CLOCKS)
        card = str(device.index or 0)
        told = _said("nvidia-smi", "-i", card, f"--query-gpu={query}", "--format=csv,noheader")
        values = [value.strip() for value in told.split(",")] if told else []
        clocks = dict(zip(CLOCKS, values, strict=False))
        return {"device": torch.cuda.get_device_name(device), "clocks": clocks}
    capability = torch.backends.cpu.get_cpu_capability()
    return {"device": f"CPU, {capability}", "threads": torch.get_num_threads(), "clocks": _mhz()}


def _mhz() -> list[float]:
    """Of each CPU now; none where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]


def _said(*command: str) -> str | None:
    """What a program prints, run in the checkout; None where it is missing or fails."""
    try:
        finished = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
