"""Write README's speed section from the raw results; figures are never typed by hand.

python -m benchmarks.readme            rewrite the section
python -m benchmarks.readme --check    exit 1 if the section is not what the results say
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def main() -> int:
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = rewrite(old, [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))])
    if "--check" in sys.argv[1:]:
        return int(old != new)
    readme.write_text(new)
    return 0


def rewrite(readme: str, reports: list[dict[str, Any]]) -> str:
    """``readme`` with a table for each report between the markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n\n".join(table(report) for report in reports)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


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


if __name__ == "__main__":
    sys.exit(main())
