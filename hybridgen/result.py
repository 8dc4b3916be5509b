"""What `generate` returns, and how its statistics add up and print.

Statistics are a plain dict. Every strategy reports strategy, total_tokens, slm_tokens, llm_tokens,
decode_steps, elapsed_time (seconds), tokens_per_second, prompt_tokens and seed, and what it
declares beside these (see `hybridgen.strategies.declarations`). Speculation adds draft_generated,
draft_accepted, acceptance_rate, accepted_per_position (how often the i-th draft of a round was
accepted), num_drafts, verification, and lookup_tokens where drafts are looked up in the text: those
that were accepted. A call with ``reuse`` reports reused_tokens, those of its prompts that no model
had to read. Routing adds threshold, llm_consecutive_tokens and slm_usage. Where a model has int8
weights, slm_weights or llm_weights say so. Rates are fractions of 1. All numbers are finite: the
dict is JSON.

How a statistic of a batch comes from those of its rows is a fold: a function of the rows' values,
or a `Rate`, which is computed from the folded counts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any, covariant=True)  # so that the bare name stays a type
    Ids = TypeVar("Ids", default=Any, covariant=True)
else:
    from typing import TypeVar

    T, Ids = TypeVar("T"), TypeVar("Ids")

Stats = dict[str, Any]

_RULE = "=" * 60
_UNKNOWN: Any = ""
_SHOWN_TEXTS, _SHOWN_CHARACTERS = 3, 60  # in a result's repr


@dataclass(frozen=True)
class Rate:
    """One statistic over another; 0 where that is 0."""

    of: str
    per: str


Fold = Callable[[list[Any]], Any] | Rate


def same(values: list[Any]) -> Any:
    """What all rows share."""
    return values[0]


def total(values: list[Any]) -> Any:
    """The sum."""
    return sum(values)


def columns(values: list[Any]) -> list[Any]:
    """Lists of one length: the sum at each place."""
    return [sum(column) for column in zip(*values, strict=True)]


def mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def each(values: list[Any]) -> list[Any]:
    """Every row's."""
    return values


def longest(values: list[Any]) -> Any:
    """The largest: of times, since rows run together."""
    return max(values)


COMMON: Mapping[str, Fold] = {
    "strategy": same,
    "total_tokens": total,
    "slm_tokens": total,
    "llm_tokens": total,
    "decode_steps": total,
    "prompt_tokens": total,
    "reused_tokens": total,
    "seed": each,
    "slm_weights": same,
    "llm_weights": same,
    "elapsed_time": longest,
    "tokens_per_second": Rate("total_tokens", "elapsed_time"),
}


@dataclass(frozen=True, repr=False)
class GenerationResult(Generic[T, Ids]):
    """The outcome of one call; `text, stats = result` works too.

    text        str, the new text alone
    tokens      list of int, the new ids, with the eos or the token that completed a stop string
    stats       dict, see the module's documentation
    full_text   str, prompt and new text: a prompt given as a string as it was written, any other as
                its token ids are decoded; both with their special tokens, the new text without
    lines       templates of the strategy's own lines in `summary`
    finish_reason   str, what ended the text: "eos", "stop" (a stop string) or "length" (that is,
                max_new_tokens); "end" where a strategy of one's own ended before these

    For a list of prompts, `text`, `tokens`, `full_text` and `finish_reason` are lists, and `stats`
    holds sums over the rows with one dict a row in `stats["rows"]`. Its type says which it is:
    ``GenerationResult[str, list[int]]`` or ``GenerationResult[list[str], list[list[int]]]``.
    """

    text: T
    tokens: Ids
    stats: Stats
    full_text: T
    lines: tuple[str, ...] = field(default=(), compare=False)
    finish_reason: T = field(default=_UNKNOWN, compare=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.text, self.stats))

    def __repr__(self) -> str:
        """The beginning of the text, how many tokens it has, and what ended it: one line."""
        text: Any = self.text
        ended: Any = self.finish_reason
        if isinstance(text, str):
            reason = f", {ended}" if ended else ""
            return f"GenerationResult({_beginning(text)}, {_tokens([self.tokens])}{reason})"
        texts = [_beginning(each) for each in text[:_SHOWN_TEXTS]]
        left = len(text) - len(texts)
        shown = ", ".join([*texts, f"... {left} more"] if left else texts)
        reasons = [f", {many} {one}" for one, many in Counter(ended).items()]
        return f"GenerationResult([{shown}], {_tokens(self.tokens)}{''.join(reasons)})"

    @property
    def summary(self) -> str:
        """The block that `generate` prints, without a final newline."""
        return format_stats(self.stats, self.lines)

    def single(self: "GenerationResult[Sequence[Any], Sequence[Any]]") -> "GenerationResult":
        """The only row of a batch of one, as the result of a single prompt."""
        row = self.stats["rows"][0]
        reason = self.finish_reason[0] if self.finish_reason else _UNKNOWN
        return GenerationResult(
            self.text[0], self.tokens[0], row, self.full_text[0], self.lines, reason
        )


def _beginning(text: str) -> str:
    """A text's repr, or that of its beginning."""
    most = _SHOWN_CHARACTERS
    return repr(text if len(text) <= most else f"{text[: most - 3]}...")


def _tokens(rows: Any) -> str:
    count = sum(map(len, rows))
    return f"{count} token{'' if count == 1 else 's'}"


def add_rates(stats: Stats, statistics: Mapping[str, Fold]) -> Stats:
    """Compute the rates in place: those of every strategy, and those among its ``statistics``.

    A rate appears where both of its counts are there.
    """
    for name, rate in {**COMMON, **statistics}.items():
        if isinstance(rate, Rate) and rate.of in stats and rate.per in stats:
            stats[name] = stats[rate.of] / stats[rate.per] if stats[rate.per] > 0 else 0.0
    return stats


def fold(rows: Sequence[Stats], statistics: Mapping[str, Fold]) -> Stats:
    """Statistics of a batch from those of its rows, which are kept in ``rows``.

    statistics    how the strategy's own add up; those of every strategy are known
    """
    stats: Stats = {
        name: how([row[name] for row in rows])
        for name, how in {**COMMON, **statistics}.items()
        if name in rows[0] and not isinstance(how, Rate)
    }
    add_rates(stats, statistics)
    stats["rows"] = list(rows)
    return stats


def format_stats(stats: Stats, lines: Sequence[str] = ()) -> str:
    """The block that `generate` prints, without a final newline.

    lines    templates of the strategy's own lines, which follow the decode steps

    A line whose keys are missing is left out.
    """
    templates = [
        "Strategy: {strategy}",
        "Time taken: {elapsed_time:.2f}s",
        "Total tokens generated: {total_tokens}",
        "Speed: {tokens_per_second:.2f} tok/s",
        "Decode steps: {decode_steps}",
        "SLM weights: {slm_weights}",
        "LLM weights: {llm_weights}",
        "Prompt tokens: {prompt_tokens}, Not read again: {reused_tokens}",
        *lines,
        "SLM tokens: {slm_tokens}, LLM tokens: {llm_tokens}",
    ]
    written = [_line(stats, template) for template in templates]
    return "\n".join([_RULE, *(line for line in written if line), _RULE])


def _line(stats: Stats, template: str) -> str | None:
    try:
        return template.format_map(stats)
    except (KeyError, TypeError, ValueError):
        return None


def ends_inside_a_line(text: Any) -> bool:
    """Whether a line printed after the text would be glued to it."""
    return isinstance(text, str) and text != "" and not text.endswith("\n")
