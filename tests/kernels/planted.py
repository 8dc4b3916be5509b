"""Kernels that must be found out: `planted.py --card N` prints their rows, as resources.py does."""

import json
import sys
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from aot import recording
from torch import Tensor


@triton.jit
def spilling(x, SIZE: tl.constexpr):
    """Each thread holds 64 numbers across a sum, in 32 registers."""
    places = x + tl.arange(0, SIZE)
    values = tl.load(places).to(tl.float32)
    tl.store(places, values / tl.sum(values, 0))


@triton.jit
def oversized(x, steps, TILE: tl.constexpr):
    """Eight buffers of two operand tiles, 32 KB each, do not fit into shared memory."""
    row, column = tl.arange(0, TILE)[:, None], tl.arange(0, 64)[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in range(steps):
        values = tl.load(x + row * 4096 + column + step * 128)
        others = tl.load(x + row * 4096 + column + step * 128 + 64)
        total = tl.dot(values, tl.trans(others), total)
    tl.store(x + row * 4096 + tl.arange(0, TILE)[None, :], total.to(tl.bfloat16))


@triton.jit
def harmless(x, n):
    place = tl.arange(0, 128)
    tl.store(x + place, 2 * tl.load(x + place, mask=place < n), mask=place < n)


class Vector(NamedTuple):
    x: Tensor
    n: int | None


@triton.jit
def grouped(vector):
    tl.store(vector.x, 0.0)


def launch(x: Tensor) -> None:
    options = dict(num_warps=4, enable_fp_fusion=True)
    spilling[(1,)](x, SIZE=8192, maxnreg=32, num_stages=1, **options)
    oversized[(1,)](x, 64, TILE=128, num_stages=9, **options)
    for vector in (x, x[8:], x[1:], x[:1], x[16:]):
        harmless[(1,)](vector, vector.shape[0], num_stages=1, **options)
    for group in (Vector(x, 16), Vector(x[1:], 1), Vector(x, None)):
        grouped[(1,)](group, num_stages=1, **options)


if __name__ == "__main__":
    card = int(sys.argv[2])
    with recording(card) as launches:
        launch(torch.empty(1 << 18, dtype=torch.bfloat16, device="cuda"))
        print(json.dumps(launches.rows(card)))
