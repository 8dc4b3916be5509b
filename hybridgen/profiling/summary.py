"""A profile as a block of text for a terminal.

Columns are aligned by how wide text is shown: Chinese characters take two columns, combining marks
none; what moves the cursor or is invisible is written as its escape.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

from hybridgen.profiling.profile import ProfileResult, TokenProfile

WIDTH = 70
TEXT_COLUMNS = 20  # of a token's text, with its quotes
MOST_UNCERTAIN = 10
TENS = tuple(range(10, 100, 10))  # in percent
LABELS = {"uncertainty": "Uncertainty", "epistemic": "Epistemic", "entropy": "Entropy"}
MODEL_LABELS = {"slm": "SLM", "llm": "LLM", "lookup": "Lookup"}

_DESCRIPTIONS = {"uncertainty": "aleatoric, 0 to 1", "entropy": "nats"}
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_CUT = "..."


def summary(profile: ProfileResult) -> str:
    """The block, without a final newline."""
    thick, thin = "=" * WIDTH, "-" * WIDTH
    sections = [
        [" | ".join(totals(profile)), *_drafts(profile)],
        _usage(profile),
        _metric(profile),
        _percentiles(profile),
        _tokens(profile),
    ]
    body = f"\n{thin}\n".join("\n".join(lines) for lines in sections if lines)
    return f"{thick}\n{title(profile)}\n{thick}\n{body}\n{thick}"


def title(profile: ProfileResult) -> str:
    """What the profile is of."""
    return f"Profile: {escaped(profile.strategy)}"


def totals(profile: ProfileResult) -> list[str]:
    """How much, how long and how fast, as far as the statistics say."""
    parts = [f"Tokens: {len(profile)}"]
    seconds, speed = (profile.stats.get(name) for name in ("elapsed_time", "tokens_per_second"))
    if seconds is not None:
        parts.append(f"Time: {seconds:.2f}s")
    if speed is not None:
        parts.append(f"Speed: {speed:.2f} tok/s")
    return parts


def _drafts(profile: ProfileResult) -> list[str]:
    drafted, accepted = (profile.stats.get(f"draft_{what}") for what in ("generated", "accepted"))
    if drafted is None or accepted is None:
        return []
    return [f"Drafts: {drafted} drafted, {accepted} accepted ({_share(accepted, drafted)})"]


def _usage(profile: ProfileResult) -> list[str]:
    usage = {m: n for m, n in profile.model_usage.items() if n or m != "lookup"}
    digits = max(len(str(count)) for count in usage.values())
    names = max(len(MODEL_LABELS[model]) for model in usage) + 1
    lines = [
        f"  {MODEL_LABELS[model] + ':':<{names}} {count:>{digits}} tokens "
        f"({_share(count, len(profile)):>6})"
        for model, count in usage.items()
    ]
    return ["Model usage:", *lines]


def _metric(profile: ProfileResult) -> list[str]:
    notes = [_DESCRIPTIONS[profile.metric], f"of the {MODEL_LABELS[profile.measured_by]}"]
    if profile.threshold is not None:
        notes.append(f"threshold {profile.threshold:.4g}")
    head = f"{LABELS[profile.metric]} ({', '.join(notes)}):"
    found = profile.analyze_distribution(percentiles=())
    if not found["count"]:
        return [head, "  measured at no token"]
    return [
        head,
        f"  Count:   {found['count']}",
        f"  Mean:    {found['mean']:.4f} ± {found['std']:.4f}",
        f"  Range:   {_range(found)}",
        f"  Median:  {found['median']:.4f}",
        f"  Top 10%: mean {found['top_10_percent']['mean']:.4f}, "
        f"range {_range(found['top_10_percent'])}",
    ]


def _percentiles(profile: ProfileResult) -> list[str]:
    found = profile.analyze_distribution(percentiles=TENS)
    if not found["count"]:
        return []
    values = {name: f"{value:.4f}" for name, value in found["percentiles"].items()}
    digits = max(map(len, values.values()))
    lines = [f"  {name}: {value:>{digits}}" for name, value in values.items()]
    return ["Percentiles, from the highest:", *lines]


def _tokens(profile: ProfileResult) -> list[str]:
    tokens = profile.get_high_uncertainty_tokens(MOST_UNCERTAIN)
    if not tokens:
        return []
    numbers = [f"{token.value(profile.metric):.4f}" for token in tokens]
    digits = max(map(len, numbers))
    places = max(3, *(len(str(token.position)) for token in tokens))
    lines = [
        f"{rank:>2}. Pos {token.position:>{places}} | {_shown(token)} "
        f"| {LABELS[profile.metric]}: {number:>{digits}} "
        f"| Model: {MODEL_LABELS[token.model_used]}"
        for rank, (token, number) in enumerate(zip(tokens, numbers, strict=True), 1)
    ]
    return ["Most uncertain tokens:", *lines]


def _range(found: dict[str, Any]) -> str:
    return f"{found['min']:.4f} to {found['max']:.4f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole if whole else 0:.1%}"


def _shown(token: TokenProfile) -> str:
    """The token's text in quotes, or its id where it has none, `TEXT_COLUMNS` wide."""
    if not token.token_text:
        return padded(f"(id {token.token_id})", TEXT_COLUMNS)
    return padded(f'"{shortened(token.token_text, TEXT_COLUMNS - 2)}"', TEXT_COLUMNS)


def escaped(text: str) -> str:
    """`text` with escapes for what is invisible, moves the cursor or turns the direction."""
    return "".join(_units(text))


def shortened(text: str, columns: int) -> str:
    """`escaped`, cut at whole characters where it is wider."""
    units = list(_units(text))
    if sum(map(columns_of, units)) <= columns:
        return "".join(units)
    kept, room = "", columns - len(_CUT)
    for unit in units:
        room -= columns_of(unit)
        if room < 0:
            break
        kept += unit
    return kept + _CUT


def padded(text: str, columns: int) -> str:
    """`text` with spaces up to a width."""
    return text + " " * (columns - columns_of(text))


def columns_of(text: str) -> int:
    """How many columns of a terminal `text` takes, which has no control characters."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me") or "\u1160" <= character <= "\u11ff":
        return 0  # marks, and the vowels and finals that complete a Hangul syllable
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _units(text: str) -> Iterator[str]:
    for character in text:
        if character in _ESCAPES:
            yield _ESCAPES[character]
        elif character.isprintable():
            yield character
        else:
            yield character.encode("unicode_escape", "surrogatepass").decode("ascii")
