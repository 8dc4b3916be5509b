"""What `generate` returns, and how its statistics add up and print.

Statistics are a plain dict. Every strategy reports strategy, total_tokens, slm_tokens, llm_tokens,
decode_steps, elapsed_time (seconds), tokens_per_second, prompt_tokens and seed. Speculation adds
draft_generated, draft_accepted, acceptance_rate, accepted_per_position (how often the i-th draft of
a round was accepted), num_drafts and verification; routing adds threshold, llm_consecutive_tokens
and slm_usage. Rates are fractions of 1. All numbers are finite: the dict is JSON.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Stats = dict[str, Any]

_SUMMED = (
    "total_tokens",
    "slm_tokens",
    "llm_tokens",
    "decode_steps",
    "prompt_tokens",
    "draft_generated",
    "draft_accepted",
)
_SHARED = ("strategy", "num_drafts", "verification", "llm_consecutive_tokens")
_RULE = "=" * 60


@dataclass(frozen=True)
class GenerationResult:
    """The outcome of one call; `text, stats = result` works too.

    text        str, the new text alone
    tokens      list of int, the new ids, with the eos or the token that completed a stop string
    stats       dict, see the module's documentation
    full_text   str, prompt and new text: a prompt given as a string as it was written, any other as
                its token ids are decoded; both with their special tokens, the new text without

    For a list of prompts, `text`, `tokens` and `full_text` are lists, and `stats` holds sums over
    the rows with one dict a row in `stats["rows"]`.
    """

    text: Any
    tokens: Any
    stats: Stats
    full_text: Any

    def __iter__(self) -> Iterator[Any]:
        return iter((self.text, self.stats))

    def single(self) -> "GenerationResult":
        """The only row of a batch of one, as the result of a single prompt."""
        return GenerationResult(
            self.text[0], self.tokens[0], self.stats["rows"][0], self.full_text[0]
        )


def add_rates(stats: Stats) -> Stats:
    """Compute the rates from the counts, in place: speed, acceptance rate and SLM usage.

    `acceptance_rate` appears with the draft counts, `slm_usage` with a threshold. A rate over
    nothing is 0.
    """
    total = stats["total_tokens"]
    elapsed = stats["elapsed_time"]
    stats["tokens_per_second"] = total / elapsed if elapsed > 0 else 0.0
    if "draft_generated" in stats:
        drafted = stats["draft_generated"]
        stats["acceptance_rate"] = stats["draft_accepted"] / drafted if drafted else 0.0
    if "threshold" in stats:
        stats["slm_usage"] = stats["slm_tokens"] / total if total else 0.0
    return stats


def sum_stats(rows: Sequence[Stats]) -> Stats:
    """Statistics of a batch from those of its rows.

    Counts are summed and rates recomputed. `elapsed_time` is the longest row's, since rows run
    together; `seed` lists every row's; `threshold` is the mean (rows differ under `llm_fraction`).
    """
    total: Stats = {name: rows[0][name] for name in _SHARED if name in rows[0]}
    for name in _SUMMED:
        if name in rows[0]:
            total[name] = sum(row[name] for row in rows)
    if "accepted_per_position" in rows[0]:
        columns = zip(*(row["accepted_per_position"] for row in rows), strict=True)
        total["accepted_per_position"] = [sum(column) for column in columns]
    if "threshold" in rows[0]:
        total["threshold"] = sum(row["threshold"] for row in rows) / len(rows)
    total["seed"] = [row["seed"] for row in rows]
    total["elapsed_time"] = max(row["elapsed_time"] for row in rows)
    add_rates(total)
    total["rows"] = list(rows)
    return total


def format_stats(stats: Stats) -> str:
    """The block that `generate` prints, without a final newline.

    A custom strategy may leave keys out: lines whose keys are missing are not printed.
    """
    lines = [
        _line(stats, "Strategy: {strategy}"),
        _line(stats, "Time taken: {elapsed_time:.2f}s"),
        _line(stats, "Total tokens generated: {total_tokens}"),
        _line(stats, "Speed: {tokens_per_second:.2f} tok/s"),
        _line(stats, "Decode steps: {decode_steps}"),
        _line(
            stats,
            "Draft tokens: {draft_generated}, Accepted: {draft_accepted}, "
            "Acceptance rate: {acceptance_rate:.2%}",
        ),
        _line(stats, "SLM usage: {slm_usage:.2%}"),
        _line(stats, "Threshold: {threshold:.4g}"),
        _line(stats, "SLM tokens: {slm_tokens}, LLM tokens: {llm_tokens}"),
    ]
    return "\n".join([_RULE, *(line for line in lines if line), _RULE])


def _line(stats: Stats, template: str) -> str | None:
    try:
        return template.format_map(stats)
    except (KeyError, TypeError, ValueError):
        return None
