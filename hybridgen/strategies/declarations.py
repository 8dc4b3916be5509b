"""What each strategy says of itself: its options, and how its statistics add up and print.

A strategy has its `Declaration` as its attribute ``declaration``. The command line, README's table
and the checks of a call are made of it, so an option is a `Field` here (and a name in the signature
of `HybridGenerator.generate`, which a test compares). Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from hybridgen.checks import check_int
from hybridgen.engine.limits import MAX_DRAFTS
from hybridgen.fields import Check, Facts, Field, choice, integer, number, optional
from hybridgen.names import Auto, Evidence, Verification
from hybridgen.result import Fold, Rate, columns, mean, same, total

MAX_CONSECUTIVE = 16
THRESHOLDS = {"uncertainty": 0.5, "entropy": 2.5}  # where none is asked for, in the metric's unit


@dataclass(frozen=True)
class Declaration:
    """A strategy as its callers see it.

    help          who writes, in a line
    options       the parameters of `generate` that are the strategy's own
    statistics    how its own statistics fold over the rows of a batch, by name
    lines         its lines of the printed block: templates of statistics
    """

    name: str
    help: str
    options: tuple[Field, ...] = ()
    statistics: Mapping[str, Fold] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


AUTO: Auto = "auto"


def check_num_drafts(name: str, value: Any, facts: Facts) -> Any:
    """An integer, or "auto"."""
    if isinstance(value, str) and str.__str__(value) == AUTO:
        return AUTO
    return check_int(name, value, 1, MAX_DRAFTS)


def read_num_drafts(text: str) -> int | str:
    """For the command line."""
    return text if text == AUTO else int(text)


NUM_DRAFTS = Field(
    "num_drafts",
    AUTO,
    Check(check_num_drafts, {"type": read_num_drafts}),
    f"tokens drafted a round, 1 to {MAX_DRAFTS}; auto drafts as many as pay, or none",
    metavar="K",
)
VERIFICATION = Field(
    "verification",
    None,
    optional(choice(*get_args(Verification))),
    "rejection keeps the LLM's distribution, coupled writes the LLM's very tokens for the seed",
    unset="coupled with auto, else rejection",
)
THRESHOLD = Field(
    "threshold",
    None,
    optional(number("a finite number >= 0", lambda x: x >= 0)),
    "the LLM writes the next token where the metric exceeds it",
    unset=", ".join(f"{value} for {name}" for name, value in THRESHOLDS.items()),
    metavar="X",
)
LLM_FRACTION = Field(
    "llm_fraction",
    None,
    optional(number("a number from 0 to 1", lambda x: 0 <= x <= 1)),
    "in place of a threshold, the share of tokens the LLM is to write, 0 to 1",
    metavar="F",
    excludes={"threshold": "llm_fraction chooses the threshold itself"},
)
LLM_CONSECUTIVE_TOKENS = Field(
    "llm_consecutive_tokens",
    1,
    integer(1, MAX_CONSECUTIVE),
    f"tokens the LLM then writes, 1 to {MAX_CONSECUTIVE}",
    metavar="N",
)
EVIDENCE = Field(
    "evidence",
    "probs",
    choice(*get_args(Evidence)),
    "measure the ten likeliest tokens by their probs, or by their logits as in the paper",
)

_ROUTING_STATISTICS: dict[str, Fold] = {
    "threshold": mean,  # rows differ under llm_fraction
    "llm_consecutive_tokens": same,
    "slm_usage": Rate("slm_tokens", "total_tokens"),
}
_ROUTING_LINES = ("SLM usage: {slm_usage:.2%}", "Threshold: {threshold:.4g}")

SPECULATIVE = Declaration(
    "speculative",
    "the SLM drafts, the LLM verifies, and the text is the LLM's",
    (NUM_DRAFTS, VERIFICATION),
    {
        "num_drafts": same,
        "verification": same,
        "draft_generated": total,
        "draft_accepted": total,
        "accepted_per_position": columns,
        "rounds_without_drafts": total,
        "lookup_rounds": total,
        "lookup_tokens": total,
        "mean_drafts": Rate("draft_generated", "decode_steps"),
        "acceptance_rate": Rate("draft_accepted", "draft_generated"),
    },
    (
        "Draft tokens: {draft_generated}, Accepted: {draft_accepted}, "
        "Acceptance rate: {acceptance_rate:.2%}",
        "Lookup tokens: {lookup_tokens}",
        "Drafts a round: {mean_drafts:.2f}; rounds without: {rounds_without_drafts}, "
        "by lookup: {lookup_rounds}",
    ),
)
UNCERTAINTY = Declaration(
    "uncertainty",
    "the SLM writes, but the LLM where the SLM's aleatoric uncertainty is above the threshold",
    (THRESHOLD, LLM_FRACTION, LLM_CONSECUTIVE_TOKENS, EVIDENCE),
    _ROUTING_STATISTICS,
    _ROUTING_LINES,
)
ENTROPY = Declaration(
    "entropy",
    "the SLM writes, but the LLM where the SLM's entropy is above the threshold",
    (THRESHOLD, LLM_FRACTION, LLM_CONSECUTIVE_TOKENS),
    _ROUTING_STATISTICS,
    _ROUTING_LINES,
)
LLM = Declaration("llm", "the LLM alone")
SLM = Declaration("slm", "the SLM alone")
BUILT_IN = (SPECULATIVE, UNCERTAINTY, ENTROPY, LLM, SLM)


def help_line(option: Field, declarations: Iterable[Declaration]) -> str:
    """The field's help, after the names of the strategies whose option it is."""
    names = [each.name for each in declarations if option in each.options]
    return f"{', '.join(names)}: {option.help}" if names else option.help
