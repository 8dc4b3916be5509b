"""Whether a decoder's step on a CPU is one compiled call: `step_numba.py`."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from hybridgen.kernels import linear
from hybridgen.kernels.attention_plan import is_compiled

Product = tuple[Tensor, Tensor | None, Tensor | None]
"""Weight [O, H], bias [O], and the scale [O] of an int8 weight; None where there is none."""


class Layer(Protocol):
    """What a step reads of a layer.

    products   qkv, output, gate over up, down
    window     the keys that a query sees at most, 0 for all
    """

    @property
    def input_norm(self) -> Tensor: ...
    @property
    def qk_norm(self) -> Tensor | None: ...
    @property
    def mlp_norm(self) -> Tensor: ...
    @property
    def products(self) -> Sequence[Product]: ...
    @property
    def window(self) -> int: ...
    @property
    def rotates(self) -> bool: ...


class Weights(Protocol):
    """What a step reads of a model.

    embedding    [V, H], whose rows are multiplied by ``scale``
    norm         [H], ahead of the head, of the dtype that is computed in
    """

    @property
    def embedding(self) -> Tensor: ...
    @property
    def scale(self) -> float: ...
    @property
    def layers(self) -> Sequence[Layer]: ...
    @property
    def norm(self) -> Tensor: ...
    @property
    def head(self) -> Product: ...


def step(weights: Weights, rope: Tensor, eps: float, head_dim: int, group: int) -> Any | None:
    """A forward as one call, a `step_numba.Step`; None where ops are to be called.

    rope   float32 [2, positions, 1, D], the table of cosines and signed sines
    group  query heads of a key head

    It takes float32, of weights that compiled products take, those of the layers of one dtype.
    """
    matrices = [product[0] for layer in weights.layers for product in layer.products]
    same = len({matrix.dtype for matrix in matrices}) == 1
    fits = all(each.is_cpu and linear.suits(each) for each in (*matrices, weights.head[0]))
    dtype, read = weights.norm.dtype, (torch.float32, torch.bfloat16)
    if dtype != torch.float32 or not (same and fits and linear.reads_plain(dtype)):
        return None
    table = weights.embedding
    if not (table.is_cpu and table.is_contiguous() and table.dtype in read):
        return None
    if not is_compiled(head_dim, dtype):
        return None
    module = import_module("hybridgen.kernels.step_numba")
    return module.Step(weights, rope, eps, head_dim, group)
