"""What got slower, wrong or lost between two files of results.

    python -m benchmarks.compare old.jsonl new.jsonl
    python -m benchmarks.compare old.jsonl new.jsonl --normalise none --json

The lines of both are matched by suite, pair, setting, contender and options. As machines differ
from run to run, each repeat's time is taken relative to that of a reference in the same comparison,
which was measured beside it: transformers' `generate`, or what ``--normalise`` names. Where a
comparison lacks it in either file, times are taken as they are, and the line says "absolute".

Of each line the ratio new / old is told, with bounds (shift.py), each of which is wrong by chance
for at most one line in 20, whatever the law of the noise, if repeats are independent. A line is
slower where even the lower bound is above 1.02 (``--least`` sets another share): the order of
linking and the size of the environment alone shift a program's times by some per cent, in all
repeats alike (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously
wrong!"). Simulated, of contender and reference with 3 % of normal noise each and equally many
repeats in both files (``--simulate`` does it again):

    repeats                                             3       5       9      21
    equal lines that are called slower              1.6 %   0.8 %   0.5 %   0.1 %
    slow-down that is found nine times in ten        16 %    12 %     9 %     7 %

Of fewer than three repeats nothing is concluded. The exit status is 1 where a line got slower, a
text became wrong, or a contender is gone; a line that got faster, or is new, is only told.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hybridgen.benchmarks.lines import Line, read
from hybridgen.benchmarks.shift import Shift, shift
from hybridgen.benchmarks.spread import seconds_a_token
from hybridgen.benchmarks.tables import BESIDE

RATE = 0.05  # of a bound that is wrong by chance
LEAST = 0.02  # share by which a line must have changed
FAULTS = ("slower", "wrong", "gone")
Lines = dict[tuple[str, str, str], Line]


@dataclass(frozen=True)
class Change:
    """What became of one line.

    verdict    "slower", "faster", "same" (it cannot be told apart), "wrong", "gone", "new", "too
               few" (repeats), "reference", "still wrong", "right again"
    shift      of seconds a token, new / old, relative to ``reference`` where that is not None
    reason     why a text is wrong
    """

    suite: str
    pair: str
    contender: str
    setting: str
    verdict: str
    shift: Shift | None = None
    reference: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """All changes, and the share by which a line must have changed to be slower or faster."""

    changes: list[Change]
    least: float

    @property
    def is_worse(self) -> bool:
        return any(change.verdict in FAULTS for change in self.changes)


def by_key(lines: Iterable[Line]) -> Lines:
    """The lines by what they are matched by; what was measured again counts as measured last."""
    return {
        (line.comparison, line.contender, json.dumps(line.options, sort_keys=True)): line
        for line in lines
    }


def compare(
    old: Iterable[Line], new: Iterable[Line], reference: str | None = BESIDE, least: float = LEAST
) -> Compared:
    """What became of each line, in the old file's order; then those that are new."""
    before, after = by_key(old), by_key(new)
    changes = []
    for key, line in before.items():
        now = after.get(key)
        if now is None:
            changes.append(_change(line, "gone"))
        elif not now.is_right:
            verdict = "wrong" if line.is_right else "still wrong"
            changes.append(_change(now, verdict, reason=now.text))
        elif not line.is_right:
            changes.append(_change(now, "right again"))
        else:
            changes.append(_timed(before, after, key, reference, least))
    changes += [_change(line, "new") for key, line in after.items() if key not in before]
    return Compared(changes, least)


def _timed(
    before: Lines, after: Lines, key: tuple[str, str, str], reference: str | None, least: float
) -> Change:
    """A line whose text is right in both files."""
    line, now = before[key], after[key]
    is_reference = line.contender == reference
    pairs = [_relative(key[0], each[key], reference, each) for each in (before, after)]
    is_relative = not is_reference and all(pairs)
    times = pairs if is_relative else [seconds_a_token(line), seconds_a_token(now)]
    if not all(times):
        return _change(now, "too few")
    found = shift(times[0], times[1], RATE)
    if is_reference:
        verdict = "reference"
    elif found.rate > RATE:
        verdict = "too few"
    elif found.low > 1 + least:
        verdict = "slower"
    elif found.high < 1 / (1 + least):
        verdict = "faster"
    else:
        verdict = "same"
    return _change(now, verdict, found, reference if is_relative else None)


def _relative(comparison: str, line: Line, reference: str | None, among: Lines) -> list[float]:
    """Seconds a token of each repeat over the reference's beside it; empty without one."""
    found = [each for key, each in among.items() if key[:2] == (comparison, reference)]
    beside = seconds_a_token(found[0]) if found else []
    return [own / its for own, its in zip(seconds_a_token(line), beside, strict=False)]


def _change(
    line: Line,
    verdict: str,
    found: Shift | None = None,
    reference: str | None = None,
    reason: str = "",
) -> Change:
    setting = json.dumps(line.setting | line.facts, sort_keys=True)
    return Change(line.suite, line.pair, line.contender, setting, verdict, found, reference, reason)


def report(compared: Compared) -> str:
    """A line for each change under its comparison, and what all come to."""
    lines, heading = [], ""
    for change in compared.changes:
        now = f"{change.suite}, {change.pair}: {change.setting}"
        if now != heading:
            lines += [*([""] if heading else []), now]
            heading = now
        found = change.shift
        ratio = f"{found.ratio:6.3f} ({found.low:.3f} to {found.high:.3f})" if found else ""
        against = change.reference or ("absolute" if found else "")
        line = f"  {change.contender:36}{change.verdict:12}{ratio:26}{against}  {change.reason}"
        lines.append(line.rstrip())
    return "\n".join([*lines, "", *_summary(compared)])


def _summary(compared: Compared) -> list[str]:
    verdicts = [change.verdict for change in compared.changes]
    timed = [each for each in compared.changes if each.verdict in ("slower", "faster", "same")]
    absolute = sum(change.reference is None for change in timed)
    return [
        "; ".join(f"{name}: {verdicts.count(name)}" for name in FAULTS)
        + f"; timed in both: {len(timed)}, {absolute} of them absolute.",
        f"Slower is by more than {compared.least:.0%}, with a bound that is wrong by chance for "
        f"{RATE:.0%} of lines at most.",
    ]


def simulate(
    repeats: int, change: float, noise: float = 0.03, times: int = 10000, seed: int = 0
) -> float:
    """Share of lines, slowed down by ``change``, that are called slower."""
    draw = random.Random(seed)

    def relative(factor: float) -> list[float]:
        return [
            factor * math.exp(draw.gauss(0, noise) - draw.gauss(0, noise)) for _ in range(repeats)
        ]

    return (
        sum(shift(relative(1), relative(1 + change), RATE).low > 1 + LEAST for _ in range(times))
        / times
    )


def simulation() -> list[str]:
    """The table of this module's docstring."""
    lines = []
    for repeats in (3, 5, 9, 21):
        found = next(
            percent
            for percent in range(1, 100)
            if simulate(repeats, percent / 100, times=2000) > 0.9
        )
        alarms = simulate(repeats, 0)
        lines.append(f"{repeats} repeats: {alarms:.2%} of equal lines, {found} % found")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="the old and the new")
    parser.add_argument("--normalise", default=BESIDE, metavar="CONTENDER", help="or none")
    parser.add_argument("--least", type=float, default=LEAST, help="share that counts as a change")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--simulate", action="store_true", help="what can be found, by simulation")
    given = parser.parse_args(arguments)
    if given.simulate:
        print(*simulation(), sep="\n")
        return 0
    if len(given.files) != 2:
        parser.error("an old and a new file are needed")
    reference = None if given.normalise == "none" else given.normalise
    old, new = (read([path]) for path in given.files)
    compared = compare(old, new, reference, given.least)
    if given.json:
        changes = [_plain(change) for change in compared.changes]
        print(json.dumps(changes, indent=1, ensure_ascii=False))
    else:
        print(report(compared))
    return int(compared.is_worse)


def _plain(change: Change) -> dict[str, object]:
    found = change.shift._asdict() if change.shift else None
    return asdict(change) | {"setting": json.loads(change.setting), "shift": found}


if __name__ == "__main__":
    sys.exit(main())
