"""Argument checks with one voice: each error names the argument, what it accepts and what came.

A value of the wrong type is a TypeError, a value out of range a ValueError. Numpy scalars count as
numbers; bools, strings and tensors do not.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from typing import NoReturn

import numpy as np


def shown(value: object) -> str:
    """`value` for an error message: its repr, shortened, and its type."""
    text = repr(value)
    if len(text) > 80:
        text = text[:77] + "..."
    return f"{text} ({type(value).__name__})"


def _wrong_type(name: str, accepted: str, value: object) -> NoReturn:
    raise TypeError(f"{name} must be {accepted}, got {shown(value)}")


def _out_of_range(name: str, accepted: str, value: object) -> NoReturn:
    raise ValueError(f"{name} must be {accepted}, got {value!r}")


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
    """`value` as a finite Python float for which `within` holds; `accepted` says so in words."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        _wrong_type(name, accepted, value)
    number = float(value)
    if not math.isfinite(number) or not within(number):
        _out_of_range(name, accepted, number)
    return number


def check_bool(name: str, value: object) -> bool:
    """`value` as a Python bool."""
    if not isinstance(value, (bool, np.bool_)):
        _wrong_type(name, "True or False", value)
    return bool(value)


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """`value`, one of the names in `choices`."""
    accepted = "one of " + ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        _wrong_type(name, accepted, value)
    if value not in choices:
        raise ValueError(f"{name} must be {accepted}, got {value!r}{did_you_mean(value, choices)}")
    return value


def check_no_more(call: str, unknown: Iterable[str], accepted: Collection[str]) -> None:
    """Raise TypeError for keyword arguments that `call` does not know."""
    for name in unknown:
        raise TypeError(
            f"{call}() got an unexpected argument {name!r}{did_you_mean(name, accepted)}; "
            f"it accepts {', '.join(accepted)}"
        )


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A suggestion to append to a message, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
