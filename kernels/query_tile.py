"""How many queries a CPU's attention may compute together without one changing another's bits.

torch's attention on a CPU is a pair of matrix products a key head, with a row for each query.
Libraries have kernels for a few numbers of rows and others for what is left over, with the sums in
another order: with MKL's for AVX2, rows of a product of 8 have other bits at another place, those
of 16 have not; with its kernels for AVX-512 it is 8, and any multiple. So it is tried out.
"""

from functools import lru_cache

import torch
from torch import Tensor

KEYS = 256
UNLIMITED = 1 << 30
MOST_QUERIES = 128  # tokens x group: more are a prompt's, whose shapes depend on it alone
CANDIDATES = ((8, UNLIMITED), (16, 16), (4, 4))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k / sqrt(D) + mask) v and the log-sum-exp, [B, heads, queries (, D)], float32."""
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        q, k, v, 0.0, False, attn_mask=mask, scale=q.shape[3] ** -0.5
    )
    return output, logsumexp


@lru_cache(maxsize=64)
def query_tile(dim: int, threads: int) -> tuple[int, int]:
    """``(tile, block)``: pad the queries to a multiple of ``tile``, never take more than ``block``.

    Tried with heads of ``dim`` on the current number of ``threads``. The last resort is (1, 1).
    """
    for tile, block in CANDIDATES:
        counts = range(tile, min(block, MOST_QUERIES) + 1, tile)
        if all(_agree(dim, tile, count) for count in counts):
            return tile, block
    return 1, 1


def _agree(dim: int, tile: int, count: int) -> bool:
    """Whether ``count`` queries together have the bits that they have in tiles, at other places.

    Scores are spread so that their exponentials are of all sizes. Values cancel in pairs, so that
    an output is little but what rounding left of its sum.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    q, k, half = random(2, 2, count, dim), 2 * random(2, 2, KEYS, dim), random(2, 2, KEYS // 2, dim)
    v = torch.cat([half, -half], 2)
    order = torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")
    mask = torch.zeros(2, 1, count, KEYS, dtype=torch.float32, device="cpu")
    together = attend(q[:, :, order].contiguous(), k, v, mask)
    for first in range(0, count, tile):
        part = slice(first, first + tile)
        alone = attend(q[:1, :1, part].contiguous(), k[:1, :1], v[:1, :1], mask[:1, :, part])
        rows = order.argsort()[part]
        pairs = zip(together, alone, strict=True)
        if not all(torch.equal(whole[:1, :1, rows], piece) for whole, piece in pairs):
            return False
    return True
