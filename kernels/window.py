"""What a model is to read next: some tokens of each text, and where they stand.

    first = start[b], or length[b] - N where no start is given
    ids[b, i] = tokens[b, first + i], i < N;    positions[p, b] = first + p, p < P

A place outside the text gives its nearest token: the first one before it, the last one behind it.
"""

from functools import cache

import numpy as np
from torch import Tensor

from hybridgen.kernels.registry import define
from hybridgen.kernels.sampling import Integers


def window_reference(
    tokens: Tensor, length: Tensor, start: Tensor | None, ids: Tensor, positions: Tensor
) -> None:
    """Fill ids [B, N] and positions [P, B] with the formula above.

    tokens int64 [B, T], length int64 [B] from 1 to T and start int64 [B] or None are read; ids and
    positions int64 are written, the last dimension of each dense.
    """
    count, ends = ids.shape[1], length.numpy()
    first = ends - count if start is None else start.numpy()
    ids.numpy()[:] = between(tokens.numpy(), ends, first, count)
    np.add(first, up_to(len(positions))[:, None], out=positions.numpy())


def between(texts: Integers, ends: Integers, first: Integers, count: int) -> Integers:
    """``count`` tokens of each of the texts [B, T], ``ends`` tokens long, from ``first`` on."""
    place = first[:, None] + up_to(count)
    place = np.maximum(np.minimum(place, ends[:, None] - 1), 0)
    found: Integers = texts[up_to(len(texts))[:, None], place]
    return found


@cache
def up_to(count: int) -> Integers:
    """0, 1, ..., ``count`` - 1; not to be written to."""
    return np.arange(count)


def _window_fake(
    tokens: Tensor, length: Tensor, start: Tensor | None, ids: Tensor, positions: Tensor
) -> None:
    return None


window = define(
    "window(Tensor tokens, Tensor length, Tensor? start, Tensor(a!) ids, Tensor(b!) positions)"
    " -> ()",
    window_reference,
    _window_fake,
    "window_triton:window",
    "commit_numba:window",
)
