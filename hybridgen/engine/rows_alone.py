"""Make the tokens of a transformers model on a CPU independent of each other, to the bit.

What is computed of a token must not depend on how many others are computed with it. Products are
held to numbers of rows that keep a row's bits (`row_tile`). Curved functions (exponentials and the
like) are taken in pieces that end with a row: torch computes the last few elements of a thread's
share by another routine, with other last bits. Experts are asked token by token: how many tokens
come to one expert depends on the others.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from hybridgen.kernels.linear import SERIAL
from hybridgen.kernels.row_tile import MAX_ROWS, row_tile

VECTORS = 64  # elements: no loop of torch's takes more at once
WITHOUT_EFFECT = (nn.Dropout, nn.Identity)
CURVED = {
    *("cos", "elu", "erf", "exp", "gelu", "log", "log1p", "log_sigmoid", "logsigmoid", "mish"),
    *("sigmoid", "silu", "sin", "softplus", "tanh"),
}


class RealRows:
    """How many rows of a forward are tokens, the others are padding; 0: they need not be alone."""

    count = 0


def curved_modules(model: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """The parts of ``model`` that are nothing but curved functions, each with how to take it."""
    found: list[tuple[nn.Module, Callable[..., Any]]] = []
    for module in model.modules():
        if hasattr(module, "inv_freq") or hasattr(module, "rope_type"):
            found.append((module, _by_vectors))
        elif not _has_state(module) and not isinstance(module, WITHOUT_EFFECT):
            found.append((module, by_rows))
    return found


def make_rows_alone(model: nn.Module, real: RealRows) -> None:
    """Change the forwards of the parts of ``model`` for which it matters, in place."""
    changes = curved_modules(model)
    changes += [
        (experts, partial(_by_token, real)) for experts in filter(is_experts, model.modules())
    ]
    for part, change in changes:
        module: Any = part
        module.forward = partial(change, module.forward)


def row_counts(model: nn.Module) -> tuple[int, int]:
    """``(tile, block)`` for which all products of ``model`` keep a row's bits: see `row_tile`."""
    products: list[tuple[Tensor, Tensor | None]] = []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        weights = [weight for weight in module.parameters(recurse=False) if weight.dim() == 2]
        bias = getattr(module, "bias", None)
        for weight in weights:
            laid_out = weight.data.t() if isinstance(module, Conv1D) else weight.data
            products.append((laid_out, bias.data if isinstance(bias, Tensor) else None))
    return row_tile(products, multiply=F.linear)


def is_loose(function: Any, x: Any) -> bool:
    """Whether a function of ``x`` [..., rows, width] outside of `curved_modules` may mix rows."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        return False
    name = getattr(function, "__name__", "").partition(".")[0]
    width = x.shape[-1]
    return name in CURVED and (width % VECTORS != 0 or width * MAX_ROWS >= SERIAL)


class CurvedByRows(TorchFunctionMode):
    """Takes curved functions by rows wherever they are called; it costs some time a call."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and getattr(func, "__name__", "") in CURVED:
            return by_rows(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def is_experts(module: nn.Module) -> bool:
    """Whether transformers chooses how to compute these experts."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate")


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))


def _by_token(real: RealRows, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Experts of ``hidden [R, H]`` with what belongs to its rows; zeros for padding."""
    if real.count == 0:
        return forward(*args, **kwargs)
    rows = len(args[0])
    count = min(real.count, rows)

    def token(i: int, given: Any) -> Any:
        own = partial(_row, i, rows)
        return tree_map(own, given)

    found = [forward(*token(i, args), **token(i, kwargs)) for i in range(count)]
    return F.pad(torch.cat(found), (0, 0, 0, rows - count))


def _row(i: int, rows: int, x: Any) -> Any:
    return x[i : i + 1] if isinstance(x, Tensor) and len(x) == rows else x


def _by_vectors(
    forward: Callable[..., Any], x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Cosines and sines of ``position_ids`` [1, R], computed of a multiple of `VECTORS` rows."""
    rows = position_ids.shape[1]
    found = forward(x, F.pad(position_ids, (0, -rows % VECTORS)), *args, **kwargs)
    return tree_map(lambda y: y.narrow(1, 0, rows) if isinstance(y, Tensor) else y, found)


def by_rows(forward: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of each row of ``x`` [..., width], in pieces that one thread computes."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        return forward(x, *args, **kwargs)
    width = x.shape[-1]
    step = max((SERIAL - 1) // width, 1)
    if x.is_contiguous() and width % VECTORS:
        step = 1
    if x.numel() <= step * width:
        return forward(x, *args, **kwargs)
    parts = x.reshape(-1, width).split(step)
    return torch.cat([forward(part, *args, **kwargs) for part in parts]).view(*x.shape[:-1], -1)
