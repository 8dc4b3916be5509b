"""What the benchmarks share: options, and reports that begin with what was run, when, on what."""

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

import hybridgen


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
    title: str, script: str, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Title, date, command, machine and versions of a run of ``script`` with ``arguments``."""
    given = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(arguments).items()
        if value is not None and name != "out"
    )
    return {
        "title": title,
        "date": date.today().isoformat(),
        "command": f"benchmarks/{script} {given}",
        "machine": machine(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hybridgen": hybridgen.__version__,
        },
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What ran it."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    capability = torch.backends.cpu.get_cpu_capability()
    return {"device": f"CPU, {capability}", "threads": torch.get_num_threads()}
