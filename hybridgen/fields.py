"""A parameter is a `Field`: its name, default, check and help line, said once.

`Request`, the checks of a call, the command line's options and README's table are made of fields.
To declare an option of your own strategy:

    Field("window", 3, integer(1, 8), "tokens looked back", metavar="N")

A check is called with the argument's name, its value and the `Facts` of the call; it returns the
value to use, or raises TypeError or ValueError that begins with the name. Any function will do; the
checks made here know how the command line is to read their values.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridgen.checks import check_bool, check_choice, check_float, check_int, quoted


@dataclass(frozen=True)
class Facts:
    """What a check may need to know of the call.

    rows             number of prompts
    is_batch         whether they came as a list, of one even
    vocab_size       ids must be below it
    max_positions    prompt and new tokens of a row must fit in it
    strategies       the known names; empty: the caller has looked the strategy up already
    defaults         what a value of None becomes, by the field's name
    """

    rows: int = 1
    vocab_size: int = sys.maxsize
    max_positions: int = sys.maxsize
    strategies: Collection[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    is_batch: bool = False


Checking = Callable[[str, Any, Facts], Any]


@dataclass(frozen=True)
class Check:
    """A check, and the keywords with which argparse reads its values (type bool: a flag)."""

    function: Checking
    argument: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, value: Any, facts: Facts) -> Any:
        return self.function(name, value, facts)


@dataclass(frozen=True)
class Field:
    """One parameter.

    help        one line for README and ``--help``
    unset       what a default of None stands for, in words
    group       of the command line's options; None: it is not one
    metavar     its value's name in ``--help``
    excludes    names of fields that cannot be given, not None, beside it; and why
    """

    name: str
    default: Any
    check: Checking
    help: str
    unset: str = ""
    group: str | None = "strategy"
    metavar: str | None = None
    excludes: Mapping[str, str] = field(default_factory=dict)

    def value(self, given: Mapping[str, Any], facts: Facts) -> Any:
        """The checked value of ``given``, by name, or of the default."""
        value = given.get(self.name, self.default)
        for other, reason in self.excludes.items() if value is not None else ():
            if given.get(other) is not None:
                raise ValueError(
                    f"{other}={quoted(given[other])} and {self.name}={quoted(value)} exclude each "
                    f"other: {reason}"
                )
        return self.check(self.name, value, facts)


def merged(*tables: Iterable[Field]) -> tuple[Field, ...]:
    """One table: each name once, where it came first, and as it came last."""
    return tuple({one.name: one for table in tables for one in table}.values())


def integer(low: int, high: int | None = None) -> Check:
    """An integer in [low, high]."""
    return Check(lambda name, value, facts: check_int(name, value, low, high), {"type": int})


def number(accepted: str, within: Callable[[float], bool]) -> Check:
    """A number that float32 has and for which ``within`` holds; ``accepted`` says so in words."""
    return Check(
        lambda name, value, facts: check_float(name, value, accepted, within), {"type": float}
    )


def choice(*names: str) -> Check:
    """One of these strings."""
    return Check(lambda name, value, facts: check_choice(name, value, names), {"choices": names})


flag = Check(lambda name, value, facts: check_bool(name, value), {"type": bool})


def optional(check: Check) -> Check:
    """None, or what ``check`` accepts."""
    return Check(
        lambda name, value, facts: None if value is None else check(name, value, facts),
        check.argument,
    )


def defaulting(check: Check) -> Check:
    """What ``check`` accepts; None becomes the call's own default."""
    return Check(
        lambda name, value, facts: check(
            name, facts.defaults.get(name) if value is None else value, facts
        ),
        check.argument,
    )
