"""The command `hybridgen bench`: a suite is run, its lines are written, its tables printed."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import get_args

from hybridgen.names import DtypeName, WeightsName

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from hybridgen.benchmarks.lines import Line
    from hybridgen.benchmarks.run import Run
    from hybridgen.benchmarks.suites import Experiment

HELP = {
    "quick": "beside transformers on the embedded pair, in under two minutes of two cores",
    "decode": "drafts a round, verifications, lookup, batches",
    "routing": "thresholds and budgets of the LLM: time, and what the text is worth to it",
    "peers": "beside every peer that is installed",
    "kernels": "each kernel beside its floor, torch, flash-attn and FlashInfer",
    "gpu": "what a card is to show: pairs of the shapes of Qwen3 and Llama; see --minutes",
}
SCRATCH = Path("~/.cache/hybridgen/bench")
EPILOG = """\
examples:
  hybridgen bench quick
      the embedded pair beside transformers, in two minutes, without a download
  hybridgen bench decode --slm Qwen/Qwen3-0.6B --llm Qwen/Qwen3-8B --prompts HumanEval.jsonl
      your own pair, on your own prompts
  hybridgen bench gpu --minutes 20 --out card.jsonl --resume
      what is missing in card.jsonl yet, as far as the time goes
  hybridgen bench quick --against before.jsonl
      and what has become slower since, beyond what chance explains

exit status:
  0 done, 1 a text was wrong, or something is slower than in --against
"""


def build_parser(declarations: Sequence[Any] | None = None) -> argparse.ArgumentParser:
    """The command's arguments."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="hybridgen bench",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    suites = "; ".join(f"{name}: {text}" for name, text in HELP.items())
    parser.add_argument("suite", choices=[*HELP], metavar="SUITE", help=suites)
    add = parser.add_argument_group("what").add_argument
    add("--pair", metavar="NAME", help="in place of the suite's own: embedded, smollm2, "
        "qwen3-1.7b+8b@0.8 (built at that shape, to agree on 80 %% of tokens), ...")  # fmt: skip
    add("--slm", metavar="MODEL", help="your own small model: hub id or local folder")
    add("--llm", metavar="MODEL", help="your own large model")
    add("--prompts", metavar="SET", help="code, spec-bench, random, or a file of Spec-Bench, "
        "MT-Bench, HumanEval or GSM8K as published")  # fmt: skip
    add("--experiment", metavar="REGEX", help="experiments of the suite in whose title it is found")
    add("--count", metavar="N", type=int, help="prompts of a repeat")
    add("--new-tokens", metavar="N", type=int, help="of each prompt")
    add("--repeats", metavar="N", type=int, help="after one that warms up")
    add("--only", metavar="REGEX", help="contenders whose name it is found in; and llm")
    add("--dry-run", action="store_true", help="as little of it as can be, on a tiny pair")
    add = parser.add_argument_group("where").add_argument
    add("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--dtype", choices=get_args(DtypeName), help="(default: by device)")
    add("--slm-weights", choices=get_args(WeightsName), help="of our SLM; what it writes by itself "
        "is left out (default: as in its dtype)")  # fmt: skip
    add("--threads", metavar="N", type=int, help="of the CPU (default: torch's)")
    add("--scratch", metavar="DIR", type=Path, default=SCRATCH, help="where pairs are built and "
        "checkpoints converted, to be used again (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("results").add_argument
    add("--out", metavar="FILE", type=Path, help="lines go there (default: a new file here)")
    add("--resume", action="store_true", help="measure only what FILE lacks")
    add(
        "--minutes",
        metavar="N",
        type=float,
        help="begin no experiment after so many, and no repeat but an experiment's first",
    )
    add("--against", metavar="FILE", type=Path, help="earlier lines to compare with")
    return parser


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> int:
    """Measure, write, print; the exit status."""
    began = monotonic()
    out = arguments.out or Path(f"bench-{arguments.suite}-{datetime.now():%Y%m%d-%H%M%S}.jsonl")
    check(arguments, out)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    from hybridgen.benchmarks.contender import Place
    from hybridgen.benchmarks.run import Run
    from hybridgen.engine.placement import choose_device

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    place = Place(
        str(choose_device(arguments.device)),
        arguments.dtype,
        torch.get_num_threads(),
        slm_weights=arguments.slm_weights,
    )
    minutes = float("inf") if arguments.minutes is None else arguments.minutes
    settled = Run(
        suite=arguments.suite,
        command=command_of(arguments),
        place=place,
        out=out,
        scratch=arguments.scratch.expanduser(),
        prompts=arguments.prompts,
        slm=arguments.slm,
        llm=arguments.llm,
        pick=wanted(arguments.only),
        until=began + 60 * minutes,
    )
    return tell(measured(arguments, settled), out, arguments.against)


def check(arguments: argparse.Namespace, out: Path) -> None:
    """Refuse what could not end well, before a model is loaded."""
    if out.exists() and not arguments.resume:
        raise ValueError(f"--out {out} exists: --resume adds what it lacks")
    if arguments.against is not None and not arguments.against.exists():
        raise ValueError(f"--against {arguments.against} does not exist")
    if arguments.pair is not None and arguments.llm is not None:
        raise ValueError("--pair names both models: give it, or --slm and --llm")
    if arguments.slm is not None and arguments.llm is None:
        raise ValueError("--slm is given without --llm")
    for name in ("count", "new_tokens", "repeats", "threads", "minutes"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    for name in ("only", "experiment"):
        pattern = getattr(arguments, name)
        if pattern is None:
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--{name} {pattern!r} is no regular expression: {error}") from None
    if arguments.experiment is not None and not chosen(arguments):
        raise ValueError(
            f"--experiment {arguments.experiment!r} is in no title of the suite {arguments.suite}"
        )


def command_of(arguments: argparse.Namespace) -> str:
    """The command that would do the same; where results go is no part of it."""
    options = []
    for name, value in vars(arguments).items():
        if name in ("suite", "out", "scratch", "against", "resume") or value in (None, False):
            continue
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(["hybridgen", "bench", arguments.suite, *options])


def wanted(only: str | None) -> Callable[[str], bool]:
    """Of a contender's name; "llm" is what the others are compared with."""
    return lambda name: only is None or name == "llm" or re.search(only, name) is not None


def measured(arguments: argparse.Namespace, settled: Run) -> list[Line]:
    """The lines of the suite."""
    from hybridgen.benchmarks import lines
    from hybridgen.benchmarks.kernel_lines import run_kernels
    from hybridgen.benchmarks.run import run_all, say
    from hybridgen.benchmarks.suites import SUITES

    found: list[Line] = []
    if arguments.suite in SUITES:
        found += run_all(settled, changed(chosen(arguments), arguments))
    with_kernels = arguments.suite in ("kernels", "gpu") and arguments.experiment is None
    if with_kernels and monotonic() < settled.until:
        say("kernels")
        made = [line for line in lines.held(settled.out) if line.suite == "kernels"]
        if not made:
            made = run_kernels(settled.command, settled.place, first_only=arguments.dry_run)
            for line in made:
                lines.append(settled.out, line)
        found += made
    return found


def chosen(arguments: argparse.Namespace) -> list[Experiment]:
    """The suite's experiments, or those that --experiment asks for."""
    from hybridgen.benchmarks.suites import SUITES

    found = SUITES[arguments.suite]() if arguments.suite in SUITES else []
    title = arguments.experiment
    return [one for one in found if title is None or re.search(title, one.title)]


def changed(experiments: Sequence[Experiment], arguments: argparse.Namespace) -> list[Experiment]:
    """The experiments with what the command line asks for instead; what is then alike, once."""
    from hybridgen.benchmarks.suites import smallest

    asked = {
        "pair": "own" if arguments.llm is not None else arguments.pair,
        "prompts": arguments.count,
        "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    found: list[Experiment] = []
    for one in experiments:
        one = replace(smallest(one) if arguments.dry_run else one, **given)
        if one not in found:
            found.append(one)
    return found


def tell(found: Sequence[Line], out: Path, against: Path | None) -> int:
    """Print the tables and the comparison; the exit status."""
    from hybridgen.benchmarks import lines
    from hybridgen.benchmarks.compare import compare, report
    from hybridgen.benchmarks.tables import tables

    print(tables(found))
    print(f"\nwritten to {out}")
    wrong = [line for line in found if not line.is_right]
    for line in wrong:
        print(f"{line.pair}, {line.contender}: {line.text}")
    slower = False
    if against is not None:
        compared = compare(lines.read([against]), found)
        print(report(compared))
        slower = compared.is_worse
    return int(bool(wrong) or slower)
