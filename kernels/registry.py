"""Define an op once: one schema, one CPU reference, one fake, one CUDA launcher.

Ops live in the ``hybridgen`` namespace of ``torch.ops``, registered through the low-level
``torch.library.Library`` (a call costs about 3 us, against 20 for ``custom_op``). The callable
that `define` returns skips even that for plain CPU tensors: there it is the reference itself.

The launchers stand in modules of their own, ``<op>_triton.py``, which are imported by the first
CUDA tensor: a machine without a GPU never imports Triton, and need not have it. An op may have a
function that numba compiles for the CPU, in ``<op>_numba.py``: it takes the reference's place where
numba is installed, from the first call on.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
TELLING = 2.0  # seconds: importing numba takes one

LIBRARY = torch.library.Library("hybridgen", "DEF")


class Op:
    """One op of ``torch.ops.hybridgen``; calling it dispatches on the first argument.

    reference   the CPU implementation, in torch's ops
    on_cpu      what is called on a CPU: the reference, or what numba has compiled
    launcher()  the CUDA one, on tensors of any device: Triton's interpreter takes those of a CPU
    """

    def __init__(
        self, name: str, reference: Callable[..., Any], launcher: str, compiled: str | None
    ) -> None:
        self.name = self.__name__ = name
        self.reference = reference
        self.launcher = cache(lambda: _load(launcher))
        self.on_cpu = reference if compiled is None else self._choose
        self._compiled = compiled
        self.__doc__ = reference.__doc__
        self._packet = getattr(torch.ops.hybridgen, name).default

    def __call__(self, first: Tensor, *rest: Any) -> Any:
        if type(first) in _PLAIN and first.is_cpu:
            return self.on_cpu(first, *rest)
        return self._packet(first, *rest)

    def launch(self, first: Tensor, *rest: Any) -> Any:
        """Triton launches on the current device, whatever the device of the arguments."""
        with torch.cuda.device(first.device):
            return self.launcher()(first, *rest)

    def _choose(self, *arguments: Any) -> Any:
        """`on_cpu` until it is called first: numba is not imported before."""
        assert self._compiled is not None
        began = perf_counter()
        self.on_cpu = _load(self._compiled) if has_numba() else self.reference
        result = self.on_cpu(*arguments)
        seconds = perf_counter() - began
        if seconds > TELLING:
            logger.info("%s was compiled for this CPU, once, in %.1f s", self.name, seconds)
        return result


OPS: dict[str, Op] = {}
"""Every op that has been defined, by name."""

_PLAIN = (Tensor, torch.nn.Parameter)


@cache
def has_numba() -> bool:
    """Whether numba can be imported; HYBRIDGEN_NUMBA=0 in the environment says not to."""
    if os.environ.get("HYBRIDGEN_NUMBA") == "0" or find_spec("numba") is None:
        return False
    try:
        import_module("numba")
    except ImportError:  # it may refuse a numpy that is newer than itself
        return False
    return True


def _load(path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    launcher: Callable[..., Any] = getattr(import_module(f"hybridgen.kernels.{module}"), function)
    return launcher


def define(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    launcher: str,
    compiled: str | None = None,
) -> Op:
    """Register ``hybridgen::name`` from ``schema`` and return the op to call.

    schema     as in native_functions.yaml, ``"name(Tensor x, Tensor(a!) out) -> Tensor"``; its
               first argument is a Tensor, and mutated arguments carry ``(a!)``
    reference  the CPU implementation, positional arguments only
    fake       the same signature, returns empty tensors of the right shape, dtype and device
    launcher   the CUDA implementation with the same signature, as ``"module:function"``, the
               module beside this one
    compiled   one for CPU tensors that needs numba, likewise; it must take all that the reference
               takes
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    torch.library.register_fake(f"hybridgen::{name}", fake, lib=LIBRARY)
    op = OPS[name] = Op(name, reference, launcher, compiled)
    LIBRARY.impl(name, lambda *arguments: op.on_cpu(*arguments), "CPU")
    LIBRARY.impl(name, op.launch, "CUDA")
    return op
