"""Which functions compute the steps of a decoder's layer, by where and in what it computes.

On a GPU, and on a CPU where nothing else suits, they are the ops of `linear.py` and `attention.py`.
On a CPU with numba, what stands between the products is compiled; without it int8 weights still
have products of their own.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridgen.kernels import int8_cpu, linear
from hybridgen.kernels.attention import attention
from hybridgen.kernels.attention_plan import prepare

EIGHT = 8  # numbers of a head that are compiled together
SWITCH = "HYBRIDGEN_NUMBA"


class Steps(NamedTuple):
    """Of a layer, in the signatures of `linear.py`, `attention.py` and `attention_plan.prepare`."""

    norm_linear: Callable[..., Tensor]
    norm_gated_linear: Callable[..., Tensor]
    linear_residual: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    prepare: Callable[..., tuple[Tensor, Tensor]]

    @property
    def compiled(self) -> bool:
        """Whether they were compiled for this CPU."""
        return self.attention is not attention


def steps(device: torch.device, dtype: torch.dtype, dim: int, int8: bool = False) -> Steps:
    """For activations of ``dtype`` and heads of ``dim`` numbers; ``int8``: the weights are."""
    of: Any = linear
    if device.type == "cpu":
        if has_numba() and dtype != torch.float16 and dim % EIGHT == 0:
            from hybridgen.kernels import attention_numba, linear_numba

            return Steps(
                linear_numba.norm_linear,
                linear_numba.norm_gated_linear,
                linear_numba.linear_residual,
                attention_numba.attention,
                attention_numba.prepare,
            )
        of = int8_cpu if int8 else linear
    return Steps(of.norm_linear, of.norm_gated_linear, of.linear_residual, attention, prepare)


@cache
def has_numba() -> bool:
    """Whether numba can be imported; HYBRIDGEN_NUMBA=0 in the environment says not to."""
    if os.environ.get(SWITCH) == "0" or find_spec("numba") is None:
        return False
    try:
        import numba  # noqa: F401
    except ImportError:  # it does not work with this numpy
        return False
    return True
