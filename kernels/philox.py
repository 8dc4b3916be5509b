"""Counter-based random numbers: Philox-4x32-10.

There is no generator state anywhere in the engine. The random number for one token id, at one
position of one sequence, for one purpose, is a function of those four values alone:

    bits = philox4x32(counter=(token, position, stream, 0), key=(seed low, seed high))
    u    = float32((bits[0] | bits[1] << 32) * 2**-64), clamped to [2**-64, 1 - 2**-24]

so a replayed graph, another batch, another row order or another device draws the same. Token and
position enter by their low 32 bits. These are the words that ``tl.philox(seed, token, position,
stream, 0)`` returns in Triton.

One draw per token id gives an exact sample from any weights w without a cumulative sum:

    argmin_i E_i / w_i  =  argmax_i (log w_i + G_i),    E = -log1p(-u),    G = -log(E)

E is exponential, G is Gumbel. A token of small weight wins only by a large G, a small u; that is
the end where 64 bits resolve u down to 2**-64 (32 bits, or 1 - u in its place, would cap G near
22 or 17, which a vocabulary of 262144 reaches). The clamp keeps E positive and finite.

The streams keep the uses apart. The draws of a draft, of its acceptance and of the replacement
after a rejection must be independent, or the output law is biased.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

TARGET, DRAFT, ACCEPT, RESIDUAL = 0, 1, 2, 3
"""Streams: the LLM's own choice, a draft, the acceptance of a draft, the draw after a rejection."""

Words: TypeAlias = npt.NDArray[np.uint64]
Integers: TypeAlias = npt.NDArray[np.integer[Any]] | int
Floats: TypeAlias = npt.NDArray[np.float32]

SMALLEST = np.float32(2.0**-64)
LARGEST = np.float32(1 - 2.0**-24)

_LOW = 0xFFFFFFFF
# Zero-dimensional arrays: numpy converts a scalar operand anew at every call.
_MASK = np.array(_LOW, np.uint64)
_32 = np.array(32, np.uint64)
_MULTIPLY_0 = np.array(0xD2511F53, np.uint64)
_MULTIPLY_2 = np.array(0xCD9E8D57, np.uint64)
_WEYL = np.array(
    [[r * 0x9E3779B9 & _LOW, r * 0xBB67AE85 & _LOW] for r in range(10)], np.uint64
).reshape(10, 2, 1)
_BLOCK = 8192


def philox4x32(even: Words, odd: Words, key: Words) -> None:
    """Ten rounds in place: `even` holds counter words 0 and 2, `odd` words 1 and 3.

    All are uint64 [2, n], contiguous, of values below 2**32; `key` is read only. The halves swap
    in every round, so the two products are written in swapped order and all else is one call.
    """
    product = np.empty_like(even)
    word_0, word_2 = even
    product_2, product_0 = product
    for round_key in (key + _WEYL) & _MASK:
        np.multiply(word_0, _MULTIPLY_0, product_0)
        np.multiply(word_2, _MULTIPLY_2, product_2)
        np.right_shift(product, _32, even)
        np.bitwise_xor(even, odd, even)
        np.bitwise_xor(even, round_key, even)
        np.bitwise_and(product, _MASK, odd)


def random_bits(seed: Integers, position: Integers, token: Integers, stream: Integers) -> Words:
    """64 random bits for each element of the arguments' common (broadcast) shape."""
    shape = np.broadcast(seed, position, token, stream).shape
    words = np.empty((6, *shape), np.uint64)
    words[0], words[1], words[2], words[3] = token, stream, position, 0
    words[4] = seed
    np.right_shift(words[4], _32, out=words[5, ...])
    np.bitwise_and(words, _MASK, out=words)
    flat = words.reshape(6, -1)
    if flat.shape[1] <= _BLOCK:
        philox4x32(flat[:2], flat[2:4], flat[4:])
    else:  # piece by piece, each small enough for the cache
        for i in range(0, flat.shape[1], _BLOCK):
            piece = flat[:, i : i + _BLOCK].copy()
            philox4x32(piece[:2], piece[2:4], piece[4:])
            flat[:4, i : i + _BLOCK] = piece[:4]
    bits: Words = words[0] | words[2] << _32
    return bits


def uniform(seed: Integers, position: Integers, token: Integers, stream: Integers) -> Floats:
    """Uniform float32 in [2**-64, 1 - 2**-24], in the arguments' common (broadcast) shape."""
    bits = random_bits(seed, position, token, stream)
    u: Floats = np.minimum(np.maximum(bits.astype(np.float32) * SMALLEST, SMALLEST), LARGEST)
    return u


def exponential(seed: Integers, position: Integers, token: Integers, stream: Integers) -> Floats:
    """Unit exponential float32, between 2**-64 and 16.7."""
    return -np.log1p(-uniform(seed, position, token, stream))


def gumbel(seed: Integers, position: Integers, token: Integers, stream: Integers) -> Floats:
    """Standard Gumbel float32, between -2.9 and 44.4."""
    return -np.log(exponential(seed, position, token, stream))
