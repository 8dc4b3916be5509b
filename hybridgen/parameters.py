"""The parameters of `HybridGenerator.generate`, as one table of fields.

`python -m hybridgen.parameters` prints the table of README.
"""

import inspect
import secrets
from typing import Any, Protocol

from hybridgen.checks import check_choice, check_int, exact_list, has_attribute, quoted, shown
from hybridgen.engine.limits import MAX_EOS
from hybridgen.engine.sampling import Sampling
from hybridgen.fields import Check, Facts, Field, defaulting, flag, merged, number
from hybridgen.processors import PROCESSORS
from hybridgen.strategies.declarations import BUILT_IN, help_line

MAX_STOPS = 256  # each is looked for at every token
MAX_STOP_LENGTH = 4096  # characters
SEEDS = 2**63


class Streamer(Protocol):
    """A transformers streamer."""

    def put(self, value: Any, /) -> object: ...

    def end(self) -> object: ...


def check_strategy(name: str, value: Any, facts: Facts) -> str:
    return check_choice(name, value, facts.strategies or (str(value),))


def check_new_tokens(name: str, value: Any, facts: Facts) -> int:
    """At least 1, and so many that a prompt of one token fits beside them."""
    new = check_int(name, value, 1)
    if new >= facts.max_positions:
        raise ValueError(
            f"{name} must leave room for the prompt: it is {quoted(new)}, and the generator has "
            f"{facts.max_positions} positions for both (max_seq_len, at most the models' context)"
        )
    return new


def check_top_k(name: str, value: Any, facts: Facts) -> int:
    """The whole vocabulary or more becomes 0, off."""
    k = check_int(name, value, 0)
    return 0 if k >= facts.vocab_size else k


def check_seed(name: str, value: Any, facts: Facts) -> tuple[int, ...]:
    """One seed a row. Drawn seeds are short, so that one can be typed again from the statistics."""
    import numpy as np

    if value is None:
        value = secrets.randbelow(2**32)
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value)
    seeds = exact_list(value)
    if seeds is not None:
        if len(seeds) != facts.rows:
            raise ValueError(f"{name} must have one integer a row ({facts.rows}), got {len(seeds)}")
        return tuple(check_int(f"{name}[{i}]", s, 0, SEEDS - 1) for i, s in enumerate(seeds))
    first = check_int(name, value, 0, SEEDS - facts.rows)
    return tuple(range(first, first + facts.rows))


def check_stop(name: str, value: Any, facts: Facts) -> tuple[str, ...]:
    if value is None:
        return ()
    accepted = "a string or a list of strings"
    items = [value] if isinstance(value, str) else exact_list(value)
    if items is None:
        raise TypeError(f"{name} must be {accepted}, got {shown(value)}")
    if len(items) > MAX_STOPS:
        raise ValueError(f"{name} must be at most {MAX_STOPS} strings, got {len(items)}")
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name} must be {accepted}, got a list with {shown(item)}")
    texts = tuple(dict.fromkeys(str.__str__(item) for item in items))
    for text in texts:
        if not text:
            raise ValueError(f"{name} must not hold an empty string: it would stop at once")
        if len(text) > MAX_STOP_LENGTH:
            raise ValueError(
                f"{name} must be strings of at most {MAX_STOP_LENGTH} characters, got one of "
                f"{len(text)}: {quoted(text)}"
            )
    return texts


def check_eos(name: str, value: Any, facts: Facts) -> tuple[int, ...]:
    several = exact_list(value)
    items = [value] if several is None else several
    if value is None:
        items = list(dict.fromkeys(facts.defaults.get(name, ())))
    if len(items) > MAX_EOS:
        raise ValueError(f"{name} must be at most {MAX_EOS} ids, got {len(items)}")
    if value is None:
        return tuple(items)
    ids = (check_int(name, item, 0, facts.vocab_size - 1) for item in items)
    return tuple(dict.fromkeys(ids))


def check_stream(name: str, value: Any, facts: Facts) -> Any:
    if value is None:
        return None
    has_both = has_attribute(value, "put") and has_attribute(value, "end")
    usable = is_streamer(value) if has_both else callable(value)
    if isinstance(value, type) or not usable:
        raise TypeError(
            f"{name} must be a callable that takes a piece of text, or a transformers streamer "
            f"object with the methods put() and end(), got {shown(value)}"
        )
    if has_both and facts.rows > 1:
        raise ValueError(
            f"{name} is a transformers streamer, which works with one prompt, got {facts.rows}: "
            "pass a callable, stream(row, piece)"
        )
    expected = (0, "text") if facts.is_batch else ("text",)
    if not has_both and not takes(value, expected):
        call = "stream(row, piece) of a list of prompts" if facts.is_batch else "stream(piece)"
        raise TypeError(f"{name} must be callable as {call}, got {shown(value)}")
    return value


def takes(function: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether ``function`` can be called so, as far as it tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some that are not written in Python
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def is_streamer(stream: object) -> bool:
    """Whether a stream is fed tokens, as transformers does it, and not text."""
    return callable(getattr(stream, "put", None)) and callable(getattr(stream, "end", None))


def takes_text(stream: Any) -> bool:
    """Whether a stream is a callable; a transformers streamer ends its last line itself."""
    return stream is not None and not is_streamer(stream)


STRATEGY = Field(
    "strategy",
    "speculative",
    check_strategy,
    "who writes: see above, or the name of your own",
    group=None,  # the command line makes an option of it itself
)
NEW_TOKENS = Field(
    "max_new_tokens",
    200,
    Check(check_new_tokens, {"type": int}),
    "most tokens to write; never exceeded",
    group="sampling",
    metavar="N",
)
TEMPERATURE = Field(
    "temperature",
    None,
    defaulting(number("a finite number >= 0 (0 is greedy)", lambda x: x >= 0)),
    "above 1 more varied, below 1 less; 0 is greedy",
    unset="the LLM's, or 1",
    group="sampling",
    metavar="T",
)
SAMPLING = (
    TEMPERATURE,
    Field(
        "top_k",
        None,
        defaulting(Check(check_top_k, {"type": int})),
        "keep the k likeliest tokens; 0 is off",
        unset="the LLM's, or off",
        group="sampling",
        metavar="K",
    ),
    Field(
        "top_p",
        None,
        defaulting(number("a number above 0 and at most 1 (1 is off)", lambda x: 0 < x <= 1)),
        "keep the likeliest tokens that make up this probability; 1 is off",
        unset="the LLM's, or off",
        group="sampling",
        metavar="P",
    ),
    Field(
        "min_p",
        None,
        defaulting(number("a number from 0 (off) to 1", lambda x: 0 <= x <= 1)),
        "drop tokens less likely than this share of the likeliest; 0 is off",
        unset="the LLM's, or off",
        group="sampling",
        metavar="P",
    ),
)
SEED = Field(
    "seed",
    None,
    Check(check_seed, {"type": int}),
    "decides every draw; of several rows, row r takes seed + r, or its own from a list",
    unset="drawn, and reported in the statistics",
    group="sampling",
    metavar="S",
)
STOP = Field(
    "stop",
    None,
    Check(check_stop, {"action": "append"}),
    f"end the text before this string; several may be given (at most {MAX_STOPS})",
    group="sampling",
    metavar="TEXT",
)
EOS = Field(
    "eos_token_id",
    None,
    check_eos,
    "one id or several that end the text",
    unset="the LLM's",
    group=None,
)
IGNORE_EOS = Field("ignore_eos", False, flag, "write on until max_new_tokens", group=None)
REUSE = Field(
    "reuse",
    False,
    flag,
    "go on from what the last call left in the cache, as far as the prompts are the same",
    group=None,
)
STREAM = Field(
    "stream",
    None,
    check_stream,
    "a callable: stream(piece), or stream(row, piece) for a list; or a transformers streamer",
    group=None,
)
PRINT_STATS = Field("print_stats", True, flag, "print the block of statistics", group=None)

# All parameters but the prompt, in the order of `generate`'s signature.
FIELDS = merged(
    (STRATEGY, NEW_TOKENS, *SAMPLING),
    *(declaration.options for declaration in BUILT_IN),
    PROCESSORS,
    (SEED, STOP, EOS, IGNORE_EOS, REUSE, STREAM, PRINT_STATS),
)
PROMPT_HELP = "a string, token ids, chat messages, a list of these, or a tokenizer's output"


def check_sampling(sampling: Sampling, facts: Facts) -> Sampling:
    """The same with every value in range; None is one of ``facts.defaults``."""
    given = sampling._asdict()
    return Sampling(*(field.value(given, facts) for field in SAMPLING))


def markdown() -> str:
    """README's table of parameters."""
    rows = [f"| `prompt` | | {PROMPT_HELP} |"]
    for field in FIELDS:
        default = field.default
        shown = f'`"{default}"`' if isinstance(default, str) else default
        unset = f"; None: {field.unset}" if field.unset else ""
        rows.append(f"| `{field.name}` | {shown} | {help_line(field, BUILT_IN)}{unset} |")
    return "\n".join(["| parameter | default | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(markdown())
