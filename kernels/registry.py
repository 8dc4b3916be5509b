"""Define an op once: one schema, one CPU implementation, one fake, later one CUDA launcher.

Ops live in the ``hybridgen`` namespace of ``torch.ops``, registered through the low-level
``torch.library.Library`` (a call costs about 3 us, against 20 for ``custom_op``). The callable
that `define` returns skips even that for plain CPU tensors: there it is the reference itself.
"""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("hybridgen", "DEF")


def define(
    schema: str, reference: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Register ``hybridgen::name`` from ``schema`` and return the function to call.

    schema     as in native_functions.yaml, ``"name(Tensor x, Tensor(a!) out) -> Tensor"``; its
               first argument is a Tensor, and mutated arguments carry ``(a!)``
    reference  the CPU implementation, positional arguments only
    fake       the same signature, returns empty tensors of the right shape, dtype and device
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CPU")
    torch.library.register_fake(f"hybridgen::{name}", fake, lib=LIBRARY)
    packet = getattr(torch.ops.hybridgen, name).default
    plain = (torch.Tensor, torch.nn.Parameter)

    def call(first: torch.Tensor, *rest: Any) -> Any:
        if type(first) in plain and first.is_cpu:
            return reference(first, *rest)
        return packet(first, *rest)

    call.__name__ = name
    call.__doc__ = reference.__doc__
    return call
