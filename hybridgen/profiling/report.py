"""A profile as one HTML file: the text, coloured token by token.

The file needs nothing beside it and asks no network: its policy forbids it. Without JavaScript the
text is there, the metric and the models can be chosen, and the browser's own tips show each token's
values; JavaScript adds better tips, the arrow keys and the filter by percentile.

A span of the text carries, for each metric that was measured there, its place on the metric's scale
as a CSS variable from 0 (the lowest value of the text) to 1 (the highest).
"""

import base64
import hashlib
import html
from collections.abc import Iterator
from itertools import zip_longest

from hybridgen.checks import check_choice
from hybridgen.profiling import page
from hybridgen.profiling.files import Path, write_text
from hybridgen.profiling.profile import METRICS, ProfileResult, TokenProfile
from hybridgen.profiling.spans import Span, spans
from hybridgen.profiling.summary import (
    LABELS,
    MODEL_LABELS,
    escaped,
    padded,
    summary,
    title,
    totals,
)

_UNITS = {"uncertainty": "", "epistemic": "", "entropy": " nats"}
_WRITERS = {
    "slm": "written by the SLM",
    "llm": "written by the LLM",
    "lookup": "looked up in the text",
}
_NEWLINE, _SILENT = "\u21b5", "\u25e6"


def save_html(profile: ProfileResult, path: Path, metric: str | None = None) -> None:
    """See `ProfileResult.save_html`."""
    chosen = profile.metric if metric is None else check_choice("metric", metric, METRICS)
    write_text(path, render(profile, chosen))


def render(profile: ProfileResult, metric: str) -> str:
    """The page, with `metric` chosen at first."""
    scales = {name: _scale(profile, name) for name in METRICS}
    parts = spans(profile)
    script = base64.b64encode(hashlib.sha256(page.SCRIPT.encode()).digest()).decode()
    return page.PAGE.format(
        title=_text(title(profile)),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'",
        style=page.STYLE + "".join(page.CHOICE.format(name=name) for name in METRICS),
        metric=metric,
        totals=_text(" | ".join(totals(profile))),
        metrics="".join(_radio(name, name == metric) for name in METRICS),
        models="".join(_checkbox(name, count) for name, count in profile.model_usage.items()),
        legends="".join(_legend(profile, name, scales[name]) for name in METRICS),
        marks=_marks(profile, parts),
        text="".join(_span(part, scales, profile.measured_by) for part in parts),
        summary=_text(summary(profile)),
        script=page.SCRIPT,
    )


def _scale(profile: ProfileResult, metric: str) -> tuple[float, float]:
    values = profile.values(metric)
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


def _text(text: str) -> str:
    """`text` in HTML, between tags or in quotes. There is no NUL in HTML: it is a replacement."""
    return html.escape(text).replace("\r", "&#13;").replace("\0", "\ufffd")


def _span(part: Span, scales: dict[str, tuple[float, float]], measured_by: str) -> str:
    if not part.tokens:
        return f"<span>{_text(part.text)}</span>"
    last = part.tokens[-1]
    classes = ["t", last.model_used]
    classes += ["rejected"] if any(token.accepted is False for token in part.tokens) else []
    places = [
        f"--{metric}:{_place(max(values), *scales[metric])}"
        for metric in METRICS
        if (values := [v for token in part.tokens if (v := token.value(metric)) is not None])
    ]
    mark = _NEWLINE if part.text[:1] == "\n" and part.text.isspace() else ""
    mark = mark if part.text else _SILENT
    return (
        f'<span class="{" ".join(classes)}"'
        + (f' style="{";".join(places)}"' if places else "")
        + (f' data-mark="{mark}"' if mark else "")
        + f' title="{_text(_tip(part, measured_by))}">{_text(part.text)}</span>'
    )


def _place(value: float, low: float, high: float) -> str:
    """Where a value is from the lowest, 0, to the highest, 1; halfway where they are the same."""
    return f"{(value - low) / (high - low):.4f}" if high > low else "0.5"


def _tip(part: Span, measured_by: str) -> str:
    """Lines that say all of a part's tokens."""
    told = ["\n".join(_details(token, measured_by)) for token in part.tokens]
    if len(told) > 1:
        told.insert(0, f'one character of {len(part.tokens)} tokens: "{escaped(part.text)}"')
    return "\n\n".join(told)


def _details(token: TokenProfile, measured_by: str) -> Iterator[str]:
    text = f'"{escaped(token.token_text)}"' if token.token_text else "no text"
    yield f"{text}  id {token.token_id}, position {token.position}"
    yield _WRITERS[token.model_used]
    for metric, label in LABELS.items():
        value = token.value(metric)
        number = "not measured" if value is None else f"{value:.4f}{_UNITS[metric]}"
        yield f"{padded(label, 12)}{number}"
    yield from _draft(token)
    if token.top_k_probs:
        yield f"the {MODEL_LABELS[measured_by]}'s likeliest:"
    candidates = zip_longest(token.top_k_probs, token.top_k_ids, token.top_k_texts)
    for probability, number_of, text_of in candidates:
        number = "" if number_of is None else f"id {number_of}"
        shown = f'"{escaped(text_of)}"' if text_of else number
        written = "  <- written" if number_of == token.token_id else ""
        yield f"{probability:7.2%}  {shown}{written}".rstrip()


def _draft(token: TokenProfile) -> Iterator[str]:
    given = (("p", token.p), ("q", token.q))
    chances = [f"{name} {value:.4f}" for name, value in given if value is not None]
    if token.accepted is not None or chances:
        which = {True: "accepted", False: "rejected", None: "not judged"}[token.accepted]
        text = token.rejected_text
        if token.rejected_id is not None:
            which += f': "{escaped(text)}"' if text else f": id {token.rejected_id}"
        yield ", ".join([f"draft {which}", *chances])


def _radio(metric: str, chosen: bool) -> str:
    checked = " checked" if chosen else ""
    return (
        f'<label><input type="radio" name="metric" id="metric-{metric}" value="{metric}" '
        f'autocomplete="off"{checked}> {LABELS[metric]}</label>'
    )


def _checkbox(model: str, count: int) -> str:
    if not count:
        return ""
    return (
        f'<label class="key {model}"><input type="checkbox" id="show-{model}" autocomplete="off" '
        f"checked> <span>{MODEL_LABELS[model]}</span> {count}</label>"
    )


def _legend(profile: ProfileResult, metric: str, scale: tuple[float, float]) -> str:
    """The metric's colours, with the numbers at their ends, and the threshold where it routed."""
    if not len(profile.values(metric)):
        inner = f"{LABELS[metric]}: measured at no token"
    else:
        low, high = scale
        inner = f'{LABELS[metric]} {low:.4f} <span class="bar">'
        threshold = profile.threshold if metric == profile.metric else None
        if threshold is not None and low <= threshold <= high and low < high:
            inner += f'<i style="left:{(threshold - low) / (high - low):.2%}"></i>'
        inner += f"</span> {high:.4f}{_UNITS[metric]}"
        if threshold is not None:
            inner += f", threshold {threshold:.4g}"
    return f'<p class="legend legend-{metric}">{inner}</p>'


def _marks(profile: ProfileResult, parts: list[Span]) -> str:
    """What else the text's look says, as far as it occurs."""
    marks = []
    usage = profile.model_usage
    if usage["llm"]:
        marks.append('<span class="key llm"><span>underlined</span></span> the LLM wrote it')
    if usage["lookup"]:
        marks.append('<span class="key lookup"><span>dotted</span></span> looked up in the text')
    if any(token.accepted is False for token in profile):
        marks.append(
            '<span class="key rejected"><span>line above</span></span> a draft was rejected'
        )
    if any(not part.text for part in parts):
        marks.append(f"{_SILENT} a token without text")
    return "; ".join(marks)
