"""Argument checks with one voice: each error names the argument, what it accepts and what came.

A value of the wrong type is a TypeError, a value out of range a ValueError. Numpy scalars count as
numbers; bools, strings and tensors do not.
"""

import difflib
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from typing import Any, NoReturn

LONGEST_QUOTE = 80
LONGEST_WORD = 64  # beyond it, no name is looked for that may have been meant
FLOAT32 = (2.0**-126, (2 - 2**-23) * 2.0**127)  # its smallest normal and its largest number


class _Short(reprlib.Repr):
    """A repr that is short, comes soon and never fails, whatever the value."""

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 256:  # Python refuses to write out thousands of digits
            return f"<an integer of {value.bit_length()} bits>"
        return repr(value)


_short = _Short()
_short.maxstring = _short.maxother = 10 * LONGEST_QUOTE  # `quoted` shortens at the end


def quoted(value: object, longest: int = LONGEST_QUOTE) -> str:
    """`value` for an error message: its repr, shortened."""
    try:
        text = _short.repr(value)
    except Exception:  # a repr may raise anything
        text = "<a value that cannot be shown>"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def shown(value: object) -> str:
    """`quoted`, and its type."""
    return f"{quoted(value)} ({type(value).__name__})"


def exact_list(value: object) -> list[Any] | None:
    """A list or tuple as a list; None for anything else. A subclass's own methods are not asked."""
    if isinstance(value, list):
        return value if type(value) is list else list.copy(value)
    return list(tuple.__iter__(value)) if isinstance(value, tuple) else None


def has_attribute(value: object, name: str) -> bool:
    """`hasattr`, of objects too whose attributes raise anything."""
    try:
        return hasattr(value, name)
    except Exception:
        return False


def _wrong_type(name: str, accepted: str, value: object) -> NoReturn:
    raise TypeError(f"{name} must be {accepted}, got {shown(value)}")


def _out_of_range(name: str, accepted: str, value: object) -> NoReturn:
    raise ValueError(f"{name} must be {accepted}, got {quoted(value)}")


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as a Python int in [low, high]."""
    between = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        _wrong_type(name, between, value)
    number = int(value)
    if number < low or (high is not None and number > high):
        _out_of_range(name, between, number)
    return number


def check_float(name: str, value: object, accepted: str, within: Callable[[float], bool]) -> float:
    """`value` as a Python float for which `within` holds; `accepted` says so in words.

    The kernels compute in float32, so one rule holds for every number: it is 0, or its size is one
    that float32 has. Smaller ones are refused although float32 has some of them (the subnormals):
    a GPU may take these for 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        _wrong_type(name, accepted, value)
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not within(number):
        _out_of_range(name, accepted, value)
    if number != 0 and not FLOAT32[0] <= abs(number) <= FLOAT32[1]:
        sizes = "{:.2g} to {:.2g}".format(*FLOAT32)
        _out_of_range(name, f"{accepted}, finite in float32 (0, or of a size from {sizes})", value)
    return number


def check_bool(name: str, value: object) -> bool:
    """`value` as a Python bool."""
    numpy = sys.modules.get("numpy")  # without it, the value is none of its scalars
    if not isinstance(value, bool) and not (numpy and isinstance(value, numpy.bool_)):
        _wrong_type(name, "True or False", value)
    return bool(value)


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """`value`, one of the names in `choices`."""
    accepted = "one of " + ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        _wrong_type(name, accepted, value)
    word = str.__str__(value)
    if word not in choices:
        hint = did_you_mean(word, choices)
        raise ValueError(f"{name} must be {accepted}, got {quoted(word)}{hint}")
    return word


def check_no_more(call: str, unknown: Iterable[str], accepted: Collection[str]) -> None:
    """Raise TypeError for keyword arguments that `call` does not know."""
    for name in unknown:
        raise TypeError(
            f"{call}() got an unexpected argument {quoted(name)}{did_you_mean(name, accepted)}; "
            f"it accepts {', '.join(accepted)}"
        )


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A suggestion to append to a message, or nothing when no known word is near."""
    if len(word) > LONGEST_WORD:
        return ""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
