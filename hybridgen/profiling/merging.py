"""Statistics of several texts as one."""

from collections.abc import Sequence
from typing import Any

from hybridgen.result import COMMON, Fold, Rate, Stats, fold, same, total
from hybridgen.strategies.declarations import BUILT_IN

_STATISTICS: dict[str, Fold] = {
    name: how for declaration in BUILT_IN for name, how in declaration.statistics.items()
}
_STATISTICS["elapsed_time"] = total  # one text after another


def joined(rows: Sequence[Stats]) -> Stats:
    """Statistics of texts that were written one after another, those of each in "rows".

    Of what they do not share nothing is said: names that one of them lacks, settings in which they
    differ, and lists of different lengths.
    """
    shared = [name for name in rows[0] if all(_alike(name, row, rows[0]) for row in rows)]
    stats = fold([{name: row[name] for name in shared} for row in rows], _STATISTICS)
    stats["rows"] = list(rows)
    return stats


def _alike(name: str, row: Stats, first: Stats) -> bool:
    if name not in row:
        return False
    how = {**COMMON, **_STATISTICS}.get(name)
    if isinstance(first[name], list) and not isinstance(how, Rate):
        return isinstance(row[name], list) and len(row[name]) == len(first[name])
    return how is not same or bool(row[name] == first[name])


def shared_value(name: str, values: Sequence[Any]) -> Any:
    """The value that all share; ValueError where they differ."""
    for value in values:
        if value != values[0]:
            raise ValueError(
                f"profiles must share one {name} to be merged, got {values[0]!r} and {value!r}"
            )
    return values[0]
