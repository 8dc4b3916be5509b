"""The products of a layer, 1, 5 and 9 rows, against the same product by ``F.linear`` alone.

Those of int8 weights are against the op itself with the weights in bfloat16.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from harness import Case, Target, close, copies
from shapes import MODELS, VOCAB, Model, normal
from torch import Tensor

from hybridgen.kernels.linear import linear_residual, norm_gated_linear, norm_linear
from hybridgen.kernels.quantise import dequantise, quantise

EPS = 1e-6
LARGE = 16_000_000  # elements of a weight from which the target holds


def products(model: Model) -> dict[str, tuple[Any, int, int]]:
    """Name -> op, outputs and depth of its weight."""
    qkv = (model.heads + 2 * model.kv_heads) * model.head_dim
    return {
        "QKV": (norm_linear, qkv, model.hidden),
        "output": (linear_residual, model.hidden, model.heads * model.head_dim),
        "gate and up": (norm_gated_linear, 2 * model.intermediate, model.hidden),
        "down": (linear_residual, model.hidden, model.intermediate),
        "head": (norm_linear, VOCAB, model.hidden),
    }


CASES = [
    ("embedded LLM", "QKV", 1),
    *(
        (model, product, rows)
        for model in ("Qwen3-1.7B", "Qwen3-8B")
        for product in products(MODELS[model])
        for rows in (1, 5, 9)
    ),
]


@pytest.mark.parametrize("model, product, rows", CASES)
def bench_linear(run: Run, device: torch.device, model: str, product: str, rows: int) -> None:
    op, outputs, depth = products(MODELS[model])[product]

    def make(seed: int) -> tuple[Any, ...]:
        x = normal(seed, rows, depth, device=device)
        weight = normal(seed + 1000, outputs, depth, device=device) * depth**-0.5
        if op is linear_residual:
            return x, weight, None, normal(seed + 2000, rows, outputs, device=device)
        return x, torch.ones(depth, dtype=x.dtype, device=device), EPS, weight, None

    inputs = copies(make, device)

    def weight_of(i: int) -> Tensor:
        weight: Tensor = inputs[i][1 if op is linear_residual else 3]
        return weight

    def product_alone(i: int) -> Tensor:
        return F.linear(inputs[i][0], weight_of(i))

    def composition(i: int) -> Tensor:
        """The same work by torch: the norm before the product, and what comes after it."""
        x = inputs[i][0]
        if op is linear_residual:
            residual: Tensor = inputs[i][3]
            return F.linear(x, weight_of(i)) + residual
        y = F.linear(F.rms_norm(x, (depth,), inputs[i][1], EPS), weight_of(i))
        if op is norm_linear:
            return y
        gate, up = y.chunk(2, -1)
        return F.silu(gate) * up

    columns = outputs // 2 if op is norm_gated_linear else outputs
    activations = rows * (depth + columns * (2 if op is linear_residual else 1))
    run(
        Case(
            f"{model} {product}, {outputs} x {depth}, rows: {rows}",
            op,
            inputs,
            nbytes=weight_of(0).nbytes + 2 * activations,
            agree=close,
            baselines={"F.linear": product_alone, "torch": composition},
            target=Target(bandwidth=0.9) if outputs * depth >= LARGE else None,
        )
    )


INT8_CASES = [
    ("embedded LLM", "QKV", 1),
    *(
        ("Qwen3-1.7B", product, rows)
        for product in products(MODELS["Qwen3-1.7B"])
        for rows in (1, 5)
    ),
]


@pytest.mark.parametrize("model, product, rows", INT8_CASES)
def bench_int8_linear(run: Run, device: torch.device, model: str, product: str, rows: int) -> None:
    op, outputs, depth = products(MODELS[model])[product]

    def make(seed: int) -> tuple[Any, ...]:
        x = normal(seed, rows, depth, device=device)
        q, scale = quantise(normal(seed + 1000, outputs, depth, device=device) * depth**-0.5)
        if op is linear_residual:
            return x, q, None, normal(seed + 2000, rows, outputs, device=device), scale
        return x, torch.ones(depth, dtype=x.dtype, device=device), EPS, q, None, scale

    def in_bfloat16(given: tuple[Any, ...]) -> tuple[Any, ...]:
        *others, scale = given
        at = 1 if op is linear_residual else 3
        others[at] = dequantise(others[at], scale).bfloat16()
        return tuple(others)

    inputs = copies(make, device)
    plain = [in_bfloat16(given) for given in inputs]
    columns = outputs // 2 if op is norm_gated_linear else outputs
    activations = rows * (depth + columns * (2 if op is linear_residual else 1))
    run(
        Case(
            f"{model} {product}, {outputs} x {depth} of int8, rows: {rows}",
            op,
            inputs,
            nbytes=outputs * (depth + 4) + 2 * activations,
            agree=close,
            baselines={"bfloat16": lambda i: op(*plain[i])},
        )
    )
