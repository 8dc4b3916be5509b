"""Markdown tables of results: one for each comparison, under a paragraph that says what was run."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hybridgen.benchmarks.lines import Line
from hybridgen.benchmarks.spread import (
    QUARTILES_FROM,
    Spread,
    seconds_a_token,
    speed_ups,
    spread,
)

BASELINE, BESIDE = "llm", "transformers"
TIME = "ms/token"
BRIEF = (TIME, f"x {BASELINE}", f"x {BESIDE}", "tokens/round", "tokens by the LLM")
NAMES = {"slm": "SLM", "llm": "LLM"}


@dataclass(frozen=True)
class Comparison:
    """Lines that stand in one table: of one setting, on one machine."""

    lines: list[Line]

    def find(self, contender: str) -> Line | None:
        return next((line for line in self.lines if line.contender == contender), None)


def comparisons(lines: Iterable[Line]) -> list[Comparison]:
    """The lines by what may be compared, in order; of what was measured again, the last."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        group = found.setdefault((line.comparison, device(line)), {})
        group[f"{line.contender} {sorted(line.options.items())}"] = line
    return [Comparison([*group.values()]) for group in found.values()]


def is_kernel(line: Line) -> bool:
    """Whether it times calls of a kernel rather than texts."""
    return line.suite == "kernels"


def device(line: Line) -> str:
    """What ran it, by name, as far as the line says so."""
    return str(line.conditions.get("machine", {}).get("device", line.setting.get("device", "")))


class Column(NamedTuple):
    """``cell(line, comparison)`` is what stands in it; "" where there is nothing to say."""

    title: str
    cell: Callable[[Line, Comparison], str]


def _time(line: Line, _: Comparison) -> str:
    return shown(_scaled(line, 1e3))


def _scaled(line: Line, unit: float) -> Spread | None:
    """Time of a token, in units of which a second has so many."""
    return spread([unit * each for each in seconds_a_token(line)])


def _rate(line: Line, _: Comparison) -> str:
    found = spread(seconds_a_token(line))
    return f"{1 / found.middle:.0f}" if found else ""


def _speed_up(baseline: str) -> Column:
    def cell(line: Line, among: Comparison) -> str:
        other = among.find(baseline)
        if other is line and line.seconds:
            return "1"
        return shown(spread(speed_ups(line, other)))

    return Column(f"x {baseline}", cell)


def _first(line: Line, _: Comparison) -> str:
    found = spread(line.first)
    return f"{1e3 * found.middle:.1f}" if found else ""


def _of_floor(line: Line, _: Comparison) -> str:
    found = floor_share(line)
    return f"{found.middle:.0%}" if found else ""


def _statistic(title: str, name: str, form: str) -> Column:
    def cell(line: Line, _: Comparison) -> str:
        value = line.statistics.get(name)
        if value is None:
            return ""
        return ", ".join(format(each, form) for each in (value if _is_list(value) else [value]))

    return Column(title, cell)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


COLUMNS = (
    Column(TIME, _time),
    Column("tokens/s", _rate),
    _speed_up(BASELINE),
    _speed_up(BESIDE),
    _statistic("tokens/round", "tokens_per_round", ".2f"),
    _statistic("accepted by position", "acceptance_per_position", ".2f"),
    _statistic("draft cost", "draft_cost", ".2f"),
    Column("first token, ms", _first),
    Column("of the floor", _of_floor),
    _statistic("tokens by the LLM", "llm_fraction", ".0%"),
    _statistic("quality, nats", "quality", ".3f"),
)


def kernel_columns(of: Comparison) -> tuple[Column, ...]:
    """Those of calls of a kernel, which have no tokens; what they are compared with differs."""
    others = [name for line in of.lines for name in line.statistics.get("times_faster", {})]
    return (
        Column("us/call", lambda line, _: shown(_scaled(line, 1e6))),
        Column("of the floor", _of_floor),
        *(_times_faster(name) for name in dict.fromkeys(others)),
    )


def _times_faster(name: str) -> Column:
    def cell(line: Line, _: Comparison) -> str:
        value = line.statistics.get("times_faster", {}).get(name, "")
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    return Column(f"x {name}", cell)


def floor_share(line: Line) -> Spread | None:
    """Share of the floor that the repeats reach: 1 is as fast as the weights can be read."""
    least = line.floor.get("seconds")
    return spread([least / each for each in seconds_a_token(line)]) if least else None


def shown(found: Spread | None) -> str:
    """Median, and the spread in brackets."""
    if found is None:
        return ""
    return f"{found.middle:.2f} ({found.low:.2f} to {found.high:.2f})"


def tables(lines: Iterable[Line], only: Collection[str] | None = None) -> str:
    """All comparisons, a table each; ``only`` the columns of these titles, where it is given."""
    return "\n\n".join(f"{headline(each)}\n\n{table(each, only)}" for each in comparisons(lines))


def table(of: Comparison, only: Collection[str] | None = None) -> str:
    """A row for each contender, without empty columns; a wrong text is named, and has no speed."""
    columns = kernel_columns(of) if is_kernel(of.lines[0]) else COLUMNS
    chosen = [each for each in columns if only is None or each.title in only]
    cells = [[column.cell(line, of) for column in chosen] for line in of.lines]
    kept = [at for at in range(len(chosen)) if at == 0 or any(row[at] for row in cells)]
    rows = [
        "| | " + " | ".join(chosen[at].title for at in kept) + " |",
        "|---|" + "---:|" * len(kept),
    ]
    for line, row in zip(of.lines, cells, strict=True):
        if not line.is_right:
            row = [f"no speed, {line.text}", *[""] * (len(chosen) - 1)]
        said = [_escaped(line.contender), *(_escaped(row[at]) for at in kept)]
        rows.append("| " + " | ".join(said) + " |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    """For a cell of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")


def headline(of: Comparison) -> str:
    """What was run, where and when, and what the brackets are."""
    first = of.lines[0]
    said = [*_where(first), *_what(first.setting), *_versions(of.lines)]
    title = first.setting.get("experiment")
    facts = f", {title}" if title else ""
    facts += "".join(f", {name.replace('_', ' ')} {value}" for name, value in first.facts.items())
    parts = [f"**{first.suite}, {first.pair}{facts}.** {'; '.join(said)}."]
    return " ".join([*parts, *_floor(of), *_brackets(of.lines)])


def _where(line: Line) -> list[str]:
    setting = line.setting
    threads = setting.get("threads")
    kind = str(setting.get("device", "cpu"))
    return [device(line), *([f"{threads} threads"] if threads and kind == "cpu" else [])]


def _what(setting: dict[str, Any]) -> list[str]:
    """The setting in words; a kernel's has none."""
    if "new_tokens" not in setting:
        return []
    dtypes = setting.get("dtypes", {})
    said = [", ".join(_model(who, setting) for who, dtype in dtypes.items() if dtype)]
    prompts = f"{setting.get('num_prompts', '')} prompts ({setting.get('prompts', '')})".strip()
    said += [f"{prompts}, {setting['new_tokens']} new tokens each"]
    if setting.get("batch", 1) != 1:
        said += [f"{setting['batch']} at a time"]
    return [each for each in [*said, sampling(setting)] if each]


def _model(who: str, setting: dict[str, Any]) -> str:
    said = f"{NAMES.get(who, who)} in {setting['dtypes'][who]}"
    weights = setting.get("weights", {}).get(f"{who}_weights")
    return f"{said}, its weights in {weights}" if weights else said


def sampling(setting: dict[str, Any]) -> str:
    """ "greedy", or the sampling parameters."""
    given = setting.get("sampling", {})
    if not given.get("temperature", 0):
        return "greedy"
    return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in given.items())


def _versions(lines: Sequence[Line]) -> list[str]:
    """Of all libraries that some line names; commit and date of the last one."""
    found: dict[str, str] = {}
    for line in lines:
        found |= line.conditions.get("versions", {})
    libraries = ", ".join(
        f"{name} {str(version).split('+')[0]}"
        for name, version in found.items()
        if name not in ("python", "hybridgen")
    )
    told = lines[-1].conditions
    commit = f"commit {told['commit']}" if told.get("commit") else ""
    return [each for each in (libraries, commit, str(told.get("date", ""))) if each]


def _floor(of: Comparison) -> list[str]:
    line = of.find(BASELINE) or of.lines[0]
    if not {"bandwidth", "seconds"} <= set(line.floor):
        return []
    if is_kernel(line):
        return [f"{line.floor['bandwidth'] / 1e9:.0f} GB/s measured in the run."]
    return [
        f"Reading the LLM's weights takes {1e3 * line.floor['seconds']:.2f} ms a token at the "
        f"{line.floor['bandwidth'] / 1e9:.0f} GB/s measured in the run."
    ]


def _brackets(lines: Sequence[Line]) -> list[str]:
    counts = sorted({len(line.seconds) for line in lines if line.seconds})
    if not counts:
        return []
    said = " or ".join(map(str, counts))
    if counts[-1] < QUARTILES_FROM:
        return [f"In brackets: the least and the most of {said} repeats."]
    less = f", of fewer than {QUARTILES_FROM} the least and the most"
    return [
        f"In brackets: the quartiles of {said} repeats{less if counts[0] < QUARTILES_FROM else ''}."
    ]
