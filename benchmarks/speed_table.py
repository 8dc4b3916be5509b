"""Tables of what `python -m benchmarks.speed` writes, and of nothing else."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def speed_tables(pattern: str) -> str:
    """A table for each report ``results/<pattern>.json``, in the order of their names."""
    paths = sorted(RESULTS.glob(f"{pattern}.json"))
    return "\n\n".join(table(json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def table(report: dict[str, Any]) -> str:
    """One report: milliseconds a token and ratios to the peers, for each mode."""
    modes = report["modes"]
    names = list(next(iter(modes.values())))
    peers = list(modes[next(iter(modes))]["llm"]["ratio_to"])
    heads = " | ".join(f"x {peer}" for peer in peers)
    floor = report["floor"]
    versions = report["versions"]
    lines = [
        f"{report['title']}. {report['machine']['device']}, {report['machine']['threads']} "
        f"threads, LLM in {report['dtypes']['llm'].removeprefix('torch.')}, SLM in "
        f"{report['dtypes']['slm'].removeprefix('torch.')}, {report['new_tokens']} new tokens; "
        f"torch {versions['torch'].split('+')[0]}, transformers {versions['transformers']}, "
        f"{report['date']}. Reading the LLM's weights takes {floor['llm_milliseconds']:.2f} ms at "
        f"the {floor['bandwidth_gb_per_s']:.0f} GB/s measured in the run.",
        "",
        "| | " + " | ".join(f"{mode}: ms/token | {heads} | tokens/round" for mode in modes) + " |",
        "|---|" + "---:|" * len(modes) * (2 + len(peers)),
    ]
    for name in names:
        cells = (
            f"{row['milliseconds_per_token']:.2f} | "
            + "".join(f"{row['ratio_to'][peer]:.2f} | " for peer in peers)
            + f"{row['tokens_per_round']:.2f}"
            for row in (modes[mode][name] for mode in modes)
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"`python {report['command']}`"]
    return "\n".join(lines)
