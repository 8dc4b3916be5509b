"""What the threads of one team do together: claim shares of their work, wait for each other.

Counters are int64, zero before the team starts, and a barrier's is used once.
"""

import ctypes
import os
from functools import cache
from typing import Any

import llvmlite.ir as ir
from numba import njit, types
from numba.extending import intrinsic

SPINS = 1000  # looks at a barrier before the processor is offered to others: some microseconds

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@cache
def offering() -> int:
    """The address of C's ``sched_yield()``, 0 where there is none."""
    if os.name != "posix":
        return 0
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0


@intrinsic
def claim(typing_context: Any, counter: Any) -> Any:
    """The int64 at address ``counter``, which is one more for whoever claims next."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, _I64(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def call(typing_context: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at address ``function``, which returns nothing, with these arguments."""
    signature = types.void(function, arguments)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = [context.get_value_type(each) for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), kinds)
        values = [builder.extract_value(given[1], i) for i in range(len(kinds))]
        builder.call(builder.inttoptr(given[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def ask(typing_context: Any, function: Any) -> Any:
    """The int of the C function at address ``function``, which takes nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I32, [])
        place = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.sext(builder.call(place, []), _I64)

    return types.int64(types.int64), generate


@njit
def meet(counter, threads, offer):
    """Return when all of a team of ``threads`` are here; ``offer`` is `offering`'s."""
    if threads == 1:
        return
    claim(counter)
    looks = 0
    while _seen(counter) < threads:
        looks += 1
        if looks > SPINS and offer != 0:
            ask(offer)


@intrinsic
def _seen(typing_context: Any, counter: Any) -> Any:
    """The int64 at address ``counter``, and what others wrote before they counted it up."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), generate
