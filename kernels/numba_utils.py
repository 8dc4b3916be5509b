"""What the kernels for a CPU share: numbers as bits, half precision as what it stands for, exp.

numpy has no bfloat16: such tensors come as uint16, and `wide` and `rounded` convert. No function
here calls a library: LLVM makes vectors of them, and a number's bits do not depend on its place.
"""

from typing import Any

import numpy as np
import torch
from numba import cfunc, njit, types
from numba.extending import intrinsic, overload
from numba.np.numpy_support import carray
from torch import Tensor

FAST = {"reassoc", "contract", "arcp", "nsz"}  # NaN and infinity stay what they are

_LOG2_E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-126.0)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
# 2**f for |f| <= 1/2, relative minimax fit of degree 6, see `weights.py`.
_C6 = np.float32(0.00015353361959569156)
_C5 = np.float32(0.0013398873852565885)
_C4 = np.float32(0.00961843691766262)
_C3 = np.float32(0.055503323674201965)
_C2 = np.float32(0.24022647738456726)
_C1 = np.float32(0.6931471824645996)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


def compiled(function: Any) -> Any:
    """``function``, compiled when it is called first, or read from numba's cache on disk.

    Sums may be taken in any order, so that they are made of vectors. It lets other threads of
    Python run meanwhile. Where there is no folder that the cache could be in (a package and a home
    that are read-only), every process compiles.
    """
    return _compiled(function, FAST)


def exactly(function: Any) -> Any:
    """`compiled`, every operation as it stands: what is not a sum of floats gets vectors too."""
    return _compiled(function, set())


def _compiled(function: Any, fastmath: set[str]) -> Any:
    # As numpy divides: by 0 too, for a check would be between the numbers of a vector.
    options: dict[str, Any] = {"fastmath": fastmath, "nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


def c_function(*parameters: Any) -> Any:
    """A decorator: compile what takes ``parameters`` and returns nothing to a function of C.

    It is called by its ``ctypes``, which lets other threads of Python run meanwhile, or, by
    compiled code, by its ``address``. For the rest see `compiled`. What several are to compute
    alike to the bit is one C function that they call: of one in numba each may get a copy that is
    made for its place, and which of them runs depends on what has been loaded before.
    """

    def decorate(function: Any) -> Any:
        options: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy"}
        signature = types.void(*parameters)
        try:
            return cfunc(signature, cache=True, **options)(function)
        except RuntimeError:
            return cfunc(signature, **options)(function)

    return decorate


@intrinsic
def as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 of these int32 ``bits``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def as_bits(typing_context: Any, number: Any) -> Any:
    """The bits of a float32, int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@njit(fastmath=FAST, inline="always")
def exp(x):
    """e**x of a float32 x <= 0, relative error below 2**-22; 2**-126 for all that is less."""
    y = max(x * _LOG2_E, _LOWEST)
    n = np.floor(y + _HALF)
    f = y - n
    power = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _ONE
    return power * as_float((np.int32(n) + _BIAS) << _MANTISSA)


def wide(number: Any) -> Any:
    """A number of an array as float32: itself, or the bfloat16 whose bits the uint16 has."""
    raise NotImplementedError


def rounded(number: Any, array: Any) -> Any:
    """A float32 as numbers of ``array`` are kept, bfloat16 rounded to nearest, ties to even."""
    raise NotImplementedError


@overload(wide, inline="always")
def _wide(number):
    if number == types.uint16:
        return lambda number: as_float(np.int32(number) << np.int32(16))
    return lambda number: number


@overload(rounded, inline="always")
def _rounded(number, array):
    if array.dtype != types.uint16:
        return lambda number, array: number

    def to_bfloat16(number, array):
        bits = as_bits(number)
        if number != number:
            return np.uint16(0x7FC0)
        odd = (bits >> np.int32(16)) & np.int32(1)
        return np.uint16((bits + np.int32(0x7FFF) + odd) >> np.int32(16))

    return to_bfloat16


ELEMENT = {
    torch.float32: np.float32(0),
    torch.bfloat16: np.uint16(0),
    torch.float64: np.float64(0),
    torch.int64: np.int64(0),
}
"""A number of the type that a tensor's have in an array, by dtype."""


@intrinsic
def _pointer(typing_context: Any, address: Any, element: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(address, element), generate


@njit(inline="always")
def numbers_at(address, element, shape):
    """The contiguous tensor of this shape whose ``data_ptr()`` is ``address``, as an array.

    ``element`` is of `ELEMENT`. To hand over an address takes 0.2 us, an array 2, which matters
    where a layer is a few calls of 1 to 5 us. Who does holds the tensor until the call is over.
    """
    return carray(_pointer(address, element), shape)


def compact(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy, with the numbers of its last dimension side by side."""
    beside = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return tensor if beside else tensor.contiguous()


def rows_of(tensor: Tensor) -> tuple[int, ...]:
    """Where a ``tensor`` begins, and the strides in bytes of all its dimensions but the last."""
    size = tensor.element_size()
    return (tensor.data_ptr(), *(stride * size for stride in tensor.stride()[:-1]))
