"""The table of what every kernel takes on every card, `resources.json`.

python tests/kernels/resources.py              compare the table with what is compiled now
python tests/kernels/resources.py --write      rewrite it, after a kernel or a launcher changed
python tests/kernels/resources.py --card 90    compile for one card, print its rows as JSON
... --all                                      compile too what did not change since the table

A row is a specialisation (see `aot.specialisation`) with the ops that launch it and, for each card
that uses it, the fields of `aot.Resources` and the key of what they were measured on; and the key
of the same kernel as a programmatic dependent, found to wait as it should (`dependents.py`). The
numbers are those of one version of Triton and of the assembler in it, and so are the keys: with
another one everything is compiled. Specialisations and limits hold for every version.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton
from aot import CARDS, Resources, recording

from hybridgen.kernels.launch import programmatic_dependent_launch
from hybridgen.kernels.launch_triton import FIRST_CAPABILITY

TABLE = Path(__file__).with_name("resources.json")
COLUMNS = [*Resources._fields, "key", "dependent"]
DEPENDENTS = Path(__file__).with_name("dependents.py")
Rows = dict[str, dict[str, Any]]  # specialisation -> {"ops": [...], "resources": [...]}

INTENDED = {"chunk_maxima": 4, "collect": 2, "draw": 2, "resolve": 2, "_combine": 4}
"""Blocks of a kernel that every card's multiprocessor is meant to hold at once; 1 if not named."""

SPILLING = {
    # Heads of 256 without a norm of queries and keys: 8 warps hold a chunk of 64 keys and a tile of
    # queries, and the rotation is one too many. With the norm the kernel takes some 200 registers.
    ("_partials(", "qk_norm_ptr=None", "PADDED=256"): 300,
    # Two of 168, the bound that lets two programs of a product stay on a multiprocessor.
    ("_linear(x_ptr:*fp32", "BLOCK_O=32", "registers<=168"): 5,
}
"""Parts of a specialisation's name, and how many spilling instructions it is allowed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--card", type=int, choices=CARDS)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    if arguments.card:
        known = {} if arguments.all else keys(arguments.card)
        print(json.dumps(compile_decodes(arguments.card, known)))
        return 0
    options = ["--all"] if arguments.all else []
    now = {card: with_dependents(card, options) for card in CARDS}
    problems = [p for card, rows in now.items() for p in complaints(rows, card)]
    if arguments.write:
        TABLE.write_text(table(now))
    else:
        problems += [p for card, rows in now.items() for p in differences(rows, card)]
    print(f"{sum(map(len, now.values()))} kernels", *problems, sep="\n")
    return int(bool(problems))


def compile_decodes(card: int, known: dict[str, list[int]]) -> Rows:
    """Everything that the decodes launch, for ``card``: compiled in this process, or known."""
    from decodes import every_decode

    with recording(card, known) as launches, programmatic_dependent_launch(False):
        every_decode()
        rows = launches.rows(card)
    for row in rows.values():
        row["resources"] = row["resources"] or known[row["key"]]
    return rows


def with_dependents(card: int, options: list[str]) -> Rows:
    """What is measured for ``card``, and the keys of the dependents that wait as they should."""
    rows = measured(card, options=options)
    if card >= FIRST_CAPABILITY:
        for name, row in measured(card, DEPENDENTS, ["--every", *options]).items():
            rows[name]["dependent"] = row["key"] if row["dependent"] and not row["early"] else None
    return rows


def keys(card: int, dependent: bool = False) -> dict[str, list[int]]:
    """The table's keys for ``card`` and the resources they stand for; none of another Triton's."""
    recorded = json.loads(TABLE.read_text())
    if recorded["triton"] != triton.__version__:
        return {}
    columns = [row[f"sm_{card}"] for row in recorded["kernels"].values() if f"sm_{card}" in row]
    return {column[-1 if dependent else -2]: column[:-2] for column in columns}


def measured(card: int, script: Path = Path(__file__), options: Iterable[str] = ()) -> Rows:
    """The rows that ``script --card`` prints, in a process that does not interpret kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, script, "--card", str(card), *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(f"{script} --card {card} failed:\n{finished.stderr}")
    rows: Rows = json.loads(finished.stdout)
    return rows


def complaints(rows: Rows, card: int) -> list[str]:
    """What no kernel may do: spill, but for `SPILLING`, or ask for more than the card has."""
    found = []
    for name, row in rows.items():
        used = Resources(*row["resources"])
        intended = INTENDED.get(name.split("(")[0], 1)
        allowed = [n for parts, n in SPILLING.items() if all(part in name for part in parts)]
        if (used.spills or used.stack) and used.spills > max(allowed, default=-1):
            found.append(f"{used.spills} spills, {used.stack} bytes of stack")
        elif used.shared > CARDS[card].shared:
            found.append(f"{used.shared} bytes of shared memory, the card has {CARDS[card].shared}")
        elif used.blocks < intended:
            found.append(f"{used.blocks} blocks fit, {intended} are intended ({used})")
        else:
            continue
        found[-1] = f"sm_{card} {name}: {found[-1]}"
    return found


def differences(rows: Rows, card: int) -> list[str]:
    """Where the table and what is compiled now disagree."""
    recorded = json.loads(TABLE.read_text())
    column = f"sm_{card}"
    expected = {name: row for name, row in recorded["kernels"].items() if column in row}
    found = [f"{column} {name}: not in the table" for name in rows.keys() - expected.keys()]
    found += [f"{column} {name}: no longer launched" for name in expected.keys() - rows.keys()]
    for name in rows.keys() & expected.keys():
        if rows[name]["ops"] != expected[name]["ops"]:
            found.append(f"{column} {name}: launched by {rows[name]['ops']}")
        same_compiler = recorded["triton"] == triton.__version__
        *numbers, key, _ = expected[name][column]
        if same_compiler and rows[name]["resources"] != numbers:
            found.append(f"{column} {name}: {Resources(*rows[name]['resources'])}")
        elif same_compiler and rows[name]["key"] != key:
            found.append(f"{column} {name}: of another source")
    return found


def table(now: dict[int, Rows]) -> str:
    """`resources.json`: a line for each specialisation."""
    kernels: dict[str, dict[str, Any]] = {}
    for card, rows in now.items():
        for name, row in rows.items():
            column = [*row["resources"], row["key"], row.get("dependent")]
            kernels.setdefault(name, {"ops": row["ops"]})[f"sm_{card}"] = column
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(kernels.items()))
    head = json.dumps({"triton": triton.__version__, "columns": COLUMNS})
    return f'{head[:-1]},\n"kernels": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    sys.exit(main())
