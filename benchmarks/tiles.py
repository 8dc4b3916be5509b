"""Which tile a product of few rows is fastest in on this card: `python -m benchmarks.tiles`.

The products of Qwen3-1.7B's and Qwen3-8B's shapes, of a layer and of the head, without their norm:
in every tile of `TILES`, as programmatic dependents and not, and by `F.linear`. Calls go over
weights that no cache holds, in a CUDA graph. A tile's result is compared with the reference first;
one that is wrong, or that the card has no room for, is told so and has no time.
`kernels/linear_triton.py` has the tiles that were chosen so.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.benchmarks.bandwidth import read_bandwidth
from hybridgen.benchmarks.conditions import conditions, tell
from hybridgen.benchmarks.kernels.harness import close, copies, prepare, timed
from hybridgen.benchmarks.kernels.shapes import MODELS, VOCAB, normal
from hybridgen.kernels.launch import programmatic_dependent_launch

ROUNDS = 7
# Outputs of a program -> what a warp takes of a tile's depth -> stages of the pipeline.
TILES = {
    64: {32: (3, 4, 5, 6), 64: (3, 4)},
    32: {32: (5, 7), 64: (3, 4, 5, 6), 128: (3,)},
    16: {64: (4, 5, 7, 9), 128: (3, 4, 5)},
}


class Product(NamedTuple):
    """Of ``rows`` rows; gate and up have twice as many outputs as columns, others a residual."""

    name: str
    gated: bool
    columns: int
    depth: int
    rows: int


def products(rows: int) -> Iterator[Product]:
    """Those of a layer, and the head."""
    for name in ("Qwen3-1.7B", "Qwen3-8B"):
        model = MODELS[name]
        heads, hidden, inner = model.heads, model.hidden, model.intermediate
        qkv, seen = (heads + 2 * model.kv_heads) * model.head_dim, heads * model.head_dim
        yield Product(f"{name} QKV", False, qkv, hidden, rows)
        yield Product(f"{name} output", False, hidden, seen, rows)
        yield Product(f"{name} gate and up", True, inner, hidden, rows)
        yield Product(f"{name} down", False, hidden, inner, rows)
        yield Product(f"{name} head", False, VOCAB, hidden, rows)


def tiles(gated: bool) -> Iterator[tuple[str, Any]]:
    """Those of `TILES` by what they are called; of gate and up, half of the outputs are each's."""
    from hybridgen.kernels.linear_triton import REGISTERS, ROWS, Tile

    for outputs, deep in TILES.items():
        if gated and outputs < 32:
            continue
        for depth, pipelines in deep.items():
            for stages in pipelines:
                own = outputs // 2 if gated else outputs
                name = f"{outputs} outputs, {depth} deep, {stages} stages"
                yield name, Tile(ROWS, own, depth, stages, REGISTERS)


def main(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("tiles are of kernels for a GPU, and there is none here")
    device = torch.device("cuda")
    report = conditions("Tiles of products of few rows", "tiles", arguments, device)
    report["GB/s read"] = round(read_bandwidth(device) / 1e9, 1)
    report["microseconds"] = {
        product.name: measured(product, dict(tiles(product.gated)), device)
        for product in products(arguments.rows)
    }
    tell(report, arguments.out)


def measured(product: Product, of: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Microseconds of a call, by tile, the least first; or what was wrong."""
    inputs = copies(partial(_inputs, product, device), device)
    expected = _reference(product, *(tensor.cpu() for tensor in inputs[0]))
    found: dict[str, Any] = {}
    for name, tile in of.items():
        for pdl in (True, False):
            call = partial(_launch, product, tile, pdl)
            full = name if pdl else f"{name}, without PDL"
            try:
                close(call(*inputs[0]), expected)
                found[full] = _microseconds([partial(call, *given) for given in inputs], device)
            except (AssertionError, RuntimeError) as error:  # wrong, or no room on the card
                found[full] = f"{type(error).__name__}: {error}"
    found["F.linear"] = _microseconds([partial(F.linear, *given[:2]) for given in inputs], device)
    return dict(sorted(found.items(), key=_least_first))


def _least_first(item: tuple[str, Any]) -> tuple[bool, float]:
    """What has no time comes last."""
    has_none = isinstance(item[1], str)
    return has_none, 0.0 if has_none else item[1]


def _inputs(product: Product, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    outputs = product.columns * (2 if product.gated else 1)
    weight = normal(seed + 1000, outputs, product.depth, device=device) * product.depth**-0.5
    x = normal(seed, product.rows, product.depth, device=device)
    return x, weight, normal(seed + 2000, product.rows, product.columns, device=device)


def _reference(product: Product, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x.float(), weight.float())
    if not product.gated:
        return y + residual
    gate, up = y.chunk(2, -1)
    return F.silu(gate) * up


def _launch(
    product: Product, tile: Any, pdl: bool, x: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    """The product in this tile."""
    from hybridgen.kernels import linear_triton

    gated = product.gated
    with (
        patch.object(linear_triton, "tile", lambda *_: tile),
        programmatic_dependent_launch(pdl),
    ):
        return linear_triton._launch(x, weight, None, None if gated else residual, None, gated)


def _microseconds(calls: Sequence[Callable[[], Any]], device: torch.device) -> float:
    replay, count = prepare(calls, device)
    return round(1e6 * median(timed(replay) for _ in range(ROUNDS)) / count, 2)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1, help="of a product, 16 at most")
    parser.add_argument("--out", help="write the raw JSON there")
    return parser.parse_args(given)


if __name__ == "__main__":
    main(parse())
