"""In what order products add up a row: `sum_orders.py --card N` prints it for few and many rows.

For each op and width of tile, of bfloat16 and of int8 weights, of 5 rows and of 20: what the
compiler's own code (TTGIR) says of all that an order of summation depends on.
"""

import itertools
import json
import re
import sys
from typing import Any

import torch
from aot import recording
from torch import Tensor

from hybridgen.kernels.linear import linear_residual, norm_gated_linear, norm_linear

DEPTH = 4096


def order(code: str) -> dict[str, Any]:
    """Of one kernel.

    products  shape of a tensor core's product, and the warps over the quarters, rows and outputs
    tile      how far the loop goes in a step
    summed    the axes that are summed in an order of the compiler's choice
    """
    mma = re.search(r"nvidia_mma<.*?warpsPerCTA = \[(.*?)\], instrShape = \[(.*?)\]", code)
    step = re.search(r"scf\.for .* step %c(\d+)_i32", code)
    assert mma and step
    summed = re.findall(r'"tt\.reduce"\(.*?axis = (\d)', code)
    return {
        "products": [mma[2], mma[1]],
        "tile": int(step[1]),
        "summed": summed,
    }


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def call(op: str, rows: int, columns: int, int8: bool) -> None:
    x, norm, outputs = tensor(rows, DEPTH), tensor(DEPTH), columns * (2 if "gated" in op else 1)
    weight = tensor(outputs, DEPTH, dtype=torch.int8 if int8 else torch.bfloat16)
    scale = tensor(outputs, dtype=torch.float32) if int8 else None
    if op == "norm_linear":
        norm_linear(x, norm, 1e-6, weight, None, scale)
    elif op == "norm_gated_linear":
        norm_gated_linear(x, norm, 1e-6, weight, None, scale)
    else:
        linear_residual(x, weight, None, tensor(rows, columns), scale)


if __name__ == "__main__":
    found: dict[str, dict[str, Any]] = {}
    for op in ("norm_linear", "norm_gated_linear", "linear_residual"):
        for columns, int8 in itertools.product((1536, 3072, 6144), (False, True)):
            orders = found.setdefault(f"{op} {columns}{' int8' if int8 else ''}", {})
            for name, rows in (("few", 5), ("many", 20)):
                with recording(int(sys.argv[2])) as launches:
                    call(op, rows, columns, int8)
                (kernel,) = (k for k in launches.kernels.values() if k.name == "_linear")
                orders[name] = order(kernel.asm["ttgir"])
    print(json.dumps(found))
