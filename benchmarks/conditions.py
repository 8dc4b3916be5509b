"""What every report begins with: what was run, when, on what and with which versions."""

import argparse
import platform
from datetime import date
from typing import Any

import torch
import transformers

import hybridgen


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
