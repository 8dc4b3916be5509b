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


def step(
    layers: Sequence[Layer], norm: Tensor, head: Product, eps: float, head_dim: int, group: int
) -> Any | None:
    """The layers and the head as one call, a `step_numba.Step`; None where ops are to be called.

    norm   [H], ahead of the head, of the dtype that is computed in
    group  query heads of a key head

    It takes float32, of weights that compiled products take, those of the layers of one dtype.
    """
    weights = [product[0] for layer in layers for product in layer.products]
    same = len({weight.dtype for weight in weights}) == 1
    fits = all(weight.is_cpu and linear.suits(weight) for weight in (*weights, head[0]))
    if norm.dtype != torch.float32 or not (same and fits and linear.reads_plain(norm.dtype)):
        return None
    if not is_compiled(head_dim, norm.dtype):
        return None
    module = import_module("hybridgen.kernels.step_numba")
    return module.Step(layers, norm, head, eps, head_dim, group)
