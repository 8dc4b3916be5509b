"""Logits processors as parameters of `generate`, and the `Adjustment` that they make."""

from collections.abc import Callable, Mapping
from typing import Any

from hybridgen.checks import check_int, exact_list, shown
from hybridgen.engine.adjustment import Adjustment, RowFunction
from hybridgen.fields import Check, Checking, Facts, Field, integer, number

NEVER = float("-inf")
MAX_PROCESSORS = 64
Processor = Callable[[Any, Any], Any]
"""(ids [1, T] int64, scores [1, V] float32) -> scores, like transformers' logits processors."""


def unless_given(off: Any, check: Checking) -> Check:
    """What ``check`` accepts; None becomes the call's own default, or ``off``."""

    def checked(name: str, value: Any, facts: Facts) -> Any:
        value = facts.defaults.get(name) if value is None else value
        return off if value is None else check(name, value, facts)

    return Check(checked, getattr(check, "argument", {}))


def check_ids(name: str, value: Any, facts: Facts) -> tuple[int, ...]:
    """A list of token ids."""
    items = exact_list(value)
    if items is None:
        raise TypeError(f"{name} must be a list of token ids, got {shown(value)}")
    return tuple(dict.fromkeys(check_int(name, item, 0, facts.vocab_size - 1) for item in items))


def check_words(name: str, value: Any, facts: Facts) -> tuple[tuple[int, ...], ...]:
    """A list of words, each a list of its token ids."""
    words = exact_list(value)
    if words is None:
        raise TypeError(f"{name} must be a list of lists of token ids, got {shown(value)}")
    checked = []
    for word in words:
        ids = exact_list(word)
        if ids is None:
            raise TypeError(f"{name} must be lists of token ids, got a list with {shown(word)}")
        if not ids:
            raise ValueError(f"{name} must be words of at least one token, got an empty one")
        checked.append(tuple(check_int(name, item, 0, facts.vocab_size - 1) for item in ids))
    return tuple(dict.fromkeys(checked))


def check_processors(name: str, value: Any, facts: Facts) -> tuple[Any, ...]:
    """One function, or a list of them."""
    several = exact_list(value)
    items = [value] if several is None else several
    if len(items) > MAX_PROCESSORS:
        raise ValueError(f"{name} must be at most {MAX_PROCESSORS} functions, got {len(items)}")
    for item in items:
        if isinstance(item, type) or not callable(item):
            raise TypeError(
                f"{name} must be callable as processor(ids, scores), like transformers' logits "
                f"processors, or a list of such, got {shown(item)}"
            )
    return tuple(items)


REPETITION_PENALTY = Field(
    "repetition_penalty",
    None,
    unless_given(1.0, number("a number above 0 (1 is off)", lambda x: x > 0)),
    "above 1, tokens that the text holds already become less likely; 1 is off",
    unset="the LLM's, or off",
    group="sampling",
    metavar="R",
)
NO_REPEAT_NGRAM_SIZE = Field(
    "no_repeat_ngram_size",
    None,
    unless_given(0, integer(0)),
    "no sequence of so many tokens is written twice; 0 is off",
    unset="the LLM's, or off",
    group="sampling",
    metavar="N",
)
MIN_NEW_TOKENS = Field(
    "min_new_tokens",
    None,
    unless_given(0, integer(0)),
    "no eos before so many tokens are written",
    unset="the LLM's, or 0",
    group="sampling",
    metavar="N",
)
SUPPRESS_TOKENS = Field(
    "suppress_tokens",
    None,
    unless_given((), check_ids),
    "token ids that are never written",
    unset="the LLM's, or none",
    group=None,
)
BAD_WORDS_IDS = Field(
    "bad_words_ids",
    None,
    unless_given((), check_words),
    "sequences of token ids that are never written",
    unset="the LLM's, or none",
    group=None,
)
LOGITS_PROCESSOR = Field(
    "logits_processor",
    None,
    unless_given((), check_processors),
    "a function (ids, scores) -> scores, like transformers' processors, or several: asked for each "
    "row and token, on the host",
    group=None,
)
PROCESSORS = (
    REPETITION_PENALTY,
    NO_REPEAT_NGRAM_SIZE,
    MIN_NEW_TOKENS,
    SUPPRESS_TOKENS,
    BAD_WORDS_IDS,
    LOGITS_PROCESSOR,
)


def adjustment(values: Mapping[str, Any]) -> Adjustment:
    """What the checked values of `PROCESSORS` and of ``eos_token_id`` ask for.

    A word that is an eos may be written, as in transformers.
    """
    ends = values["eos_token_id"]
    words = [word for word in values["bad_words_ids"] if word not in [(i,) for i in ends]]
    never = [*values["suppress_tokens"], *(word[0] for word in words if len(word) == 1)]
    functions: list[RowFunction] = []
    if longer := [word for word in words if len(word) > 1]:
        functions.append(forbidding(longer))
    functions += [for_every_text(processor) for processor in values["logits_processor"]]
    return Adjustment(
        bias=dict.fromkeys(never, NEVER),
        repetition_penalty=values["repetition_penalty"],
        no_repeat_ngram_size=values["no_repeat_ngram_size"],
        min_new_tokens=values["min_new_tokens"],
        ends=ends,
        functions=tuple(functions),
    )


def forbidding(words: list[tuple[int, ...]]) -> RowFunction:
    """Keeps the last token of a word away where the others have been written."""
    longest = max(len(word) for word in words) - 1

    def function(text: int, ids: Any, scores: Any) -> Any:
        end = tuple(ids[0, -longest:].tolist())
        for word in words:
            if end[1 - len(word) :] == word[:-1]:
                scores[0, word[-1]] = NEVER
        return scores

    return function


def for_every_text(processor: Any) -> RowFunction:
    """A processor that does not ask which text it is."""
    return lambda text, ids, scores: processor(ids, scores)
