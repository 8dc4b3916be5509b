"""Define an op once: one schema, one CPU implementation, one fake, one CUDA launcher.

Ops live in the ``hybridgen`` namespace of ``torch.ops``, registered through the low-level
``torch.library.Library`` (a call costs about 3 us, against 20 for ``custom_op``). The callable
that `define` returns skips even that for plain CPU tensors: there it is the reference itself.

The launchers stand in modules of their own, ``<op>_triton.py``, which are imported by the first
CUDA tensor: a machine without a GPU never imports Triton, and need not have it.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("hybridgen", "DEF")


class Op:
    """One op of ``torch.ops.hybridgen``; calling it dispatches on the first argument.

    reference   the CPU implementation
    launcher()  the CUDA one, on tensors of any device: Triton's interpreter takes those of a CPU
    """

    def __init__(self, name: str, reference: Callable[..., Any], launcher: str) -> None:
        self.name = self.__name__ = name
        self.reference = reference
        self.launcher = cache(lambda: _load(launcher))
        self.__doc__ = reference.__doc__
        self._packet = getattr(torch.ops.hybridgen, name).default

    def __call__(self, first: Tensor, *rest: Any) -> Any:
        if type(first) in _PLAIN and first.is_cpu:
            return self.reference(first, *rest)
        return self._packet(first, *rest)

    def launch(self, first: Tensor, *rest: Any) -> Any:
        """Triton launches on the current device, whatever the device of the arguments."""
        with torch.cuda.device(first.device):
            return self.launcher()(first, *rest)


OPS: dict[str, Op] = {}
"""Every op that has been defined, by name."""

_PLAIN = (Tensor, torch.nn.Parameter)


def _load(path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    launcher: Callable[..., Any] = getattr(import_module(f"hybridgen.kernels.{module}"), function)
    return launcher


def define(
    schema: str, reference: Callable[..., Any], fake: Callable[..., Any], launcher: str
) -> Op:
    """Register ``hybridgen::name`` from ``schema`` and return the op to call.

    schema     as in native_functions.yaml, ``"name(Tensor x, Tensor(a!) out) -> Tensor"``; its
               first argument is a Tensor, and mutated arguments carry ``(a!)``
    reference  the CPU implementation, positional arguments only
    fake       the same signature, returns empty tensors of the right shape, dtype and device
    launcher   the CUDA implementation with the same signature, as ``"module:function"``, the
               module beside this one
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CPU")
    torch.library.register_fake(f"hybridgen::{name}", fake, lib=LIBRARY)
    op = OPS[name] = Op(name, reference, launcher)
    LIBRARY.impl(name, op.launch, "CUDA")
    return op
