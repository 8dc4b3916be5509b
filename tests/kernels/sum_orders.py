"""In what order products add up a row: `sum_orders.py --card N` prints it for few and many rows.

For each op and width of tile, of 5 rows and of 20: what the compiler's own code (TTGIR) says of all
that an order of summation depends on.
"""

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
    squares   numbers of a row that a thread, the lanes of a warp and the warps hold side by side
    summed    the axes that are summed in an order of the compiler's choice
    """
    mma = re.search(r"nvidia_mma<.*?warpsPerCTA = \[(.*?)\], instrShape = \[(.*?)\]", code)
    step = re.search(r"scf\.for .* step %c(\d+)_i32", code)
    assert mma and step
    summed = re.findall(r'"tt\.reduce"\(.*?axis = (\d)', code)
    lying = re.findall(r'"tt\.reduce"\(.*?axis = 2(?s:.*?)\}\) : \(tensor<\S+ #(\w+)>', code)
    squares = [re.search(rf"#{name} = (.*)", code) for name in lying]
    fields = r"(sizePerThread|threadsPerWarp|warpsPerCTA) = \[\d+, \d+, (\d+)\]"
    return {
        "products": [mma[2], mma[1]],
        "tile": int(step[1]),
        "squares": [re.findall(fields, layout[1]) for layout in squares if layout],
        "summed": summed,
    }


def tensor(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda")


def call(op: str, rows: int, columns: int) -> None:
    x, norm = tensor(rows, DEPTH), tensor(DEPTH)
    if op == "norm_linear":
        norm_linear(x, norm, 1e-6, tensor(columns, DEPTH), None)
    elif op == "norm_gated_linear":
        norm_gated_linear(x, norm, 1e-6, tensor(2 * columns, DEPTH), None)
    else:
        linear_residual(x, tensor(columns, DEPTH), None, tensor(rows, columns))


if __name__ == "__main__":
    found: dict[str, dict[str, Any]] = {}
    for op in ("norm_linear", "norm_gated_linear", "linear_residual"):
        for columns in (1536, 3072, 6144):
            orders = found.setdefault(f"{op} {columns}", {})
            for name, rows in (("few", 5), ("many", 20)):
                with recording(int(sys.argv[2])) as launches:
                    call(op, rows, columns)
                (kernel,) = launches.kernels.values()
                orders[name] = order(kernel.asm["ttgir"])
    print(json.dumps(found))
