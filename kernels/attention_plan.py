"""What all layers of one forward on a CPU share: where the tokens go, and which keys they see.

It costs more than a layer's small ops, and so it is made once a forward, together with the cosines
and sines of the tokens' positions. The cosines carry it to the layers: it belongs to that forward
whatever others run beside it, and goes when they do. Compiled kernels need none.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hybridgen.kernels.query_tile import KEYS, query_tile
from hybridgen.kernels.registry import has_numba

EIGHT = 8  # numbers of a head that are compiled together
MASKED = -1e30  # finite, so that a chunk without a visible key has a weight of 0 and not 0 / 0
_PLAN = "_attention_plan"  # the attribute of the cosines


class Plan(NamedTuple):
    """What the layers of one forward share.

    start      the very tensor that it was made of; not to be written to before the last layer
    positions  of the cache
    group      query heads per key head
    places     int64 [B * M]; where each token goes among the cache's rows * positions
    masks      window -> float32 [chunks, B, 1, queries, keys of a chunk]; 0 where a query sees a
               key, else `MASKED`
    """

    start: Tensor
    positions: int
    group: int
    places: Tensor
    masks: dict[int, Tensor]


def prepare(
    start: Tensor,
    tokens: int,
    rope: Tensor,
    windows: Sequence[int],
    group: int,
    batch_invariant: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """cos and sin for the layers of a forward on a CPU, float32 [B * M, 1, D] each.

    start            int64 [B]; position of each row's first token, may be -1 (counts as 0)
    tokens           M, the tokens of a row
    rope             float32 [2, positions, 1, D], the table of cosines and signed sines, as many
                     positions as the cache has
    windows          the distinct window sizes of the layers, 0 for none
    group            query heads per key head
    batch_invariant  False: bits may depend on other tokens and rows; queries are then not padded,
                     and all keys are one chunk
    dtype            of the layers' activations

    It reads the largest start, to leave unwritten chunks of keys out. On a GPU, where that would
    be a wait, cosines and sines come from `layers.embed`.
    """
    at = _positions(start, tokens)
    cos, sin = rope.index_select(1, at).unbind()
    _, positions, _, dim = rope.shape
    if is_compiled(dim, dtype):
        return cos, sin
    setattr(cos, _PLAN, _plan(start, at, positions, dim, windows, group, batch_invariant))
    return cos, sin


def is_compiled(dim: int, dtype: torch.dtype) -> bool:
    """Whether attention over heads of ``dim`` numbers is compiled on a CPU, and takes no plan."""
    return dim % EIGHT == 0 and dtype != torch.float16 and has_numba()


def unrotated(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of 1 and sines of 0, for the layers of the same forward that have no positions."""
    still = torch.ones_like(cos)
    setattr(still, _PLAN, getattr(cos, _PLAN, None))
    return still, torch.zeros_like(sin)


def plan_of(cos: Tensor, start: Tensor, positions: int, group: int, window: int) -> Plan:
    """The plan that ``cos`` carries, if it is one for such a layer, else a new one."""
    plan: Plan | None = getattr(cos, _PLAN, None)
    if (
        plan is None
        or plan.start is not start
        or plan.positions != positions
        or plan.group != group
        or window not in plan.masks
    ):
        at = _positions(start, len(cos) // len(start))
        plan = _plan(start, at, positions, cos.shape[2], (window,), group, True)
    return plan


def _positions(start: Tensor, tokens: int) -> Tensor:
    """int64 [B * M]: the tokens' positions."""
    return (start.unsqueeze(1) + arange(tokens)).clamp_min_(0).view(-1)


def _plan(
    start: Tensor,
    at: Tensor,
    positions: int,
    dim: int,
    windows: Sequence[int],
    group: int,
    batch_invariant: bool,
) -> Plan:
    """``at``, the tokens' `_positions`, becomes the plan's places."""
    batch = len(start)
    tokens = len(at) // batch
    longest = max(max(start.tolist()) + tokens, 1)
    keys = min(-(-longest // KEYS) * KEYS, positions)
    if batch > 1:
        at.view(batch, tokens).add_(arange(batch, positions).unsqueeze(1))
    tile, chunk = 1, keys
    if batch_invariant:
        tile, chunk = query_tile(dim, torch.get_num_threads())[0], KEYS
    reversed_query = _reversed_queries(tokens, group, tile, positions)
    band = (reversed_query - start.unsqueeze(1)).clamp_max_(positions - 1).view(-1)
    masks = {}
    for window in windows:
        mask = _bands(positions, keys, window).index_select(0, band)
        masks[window] = mask.view(batch, 1, -1, keys // chunk, chunk).movedim(3, 0)
    return Plan(start, positions, group, at, masks)


@lru_cache(maxsize=64)
def arange(count: int, step: int = 1) -> Tensor:
    """int64 [count] on the CPU, the same tensor every time: 0, step, 2 step, ..."""
    return torch.arange(0, count * step, step, dtype=torch.int64, device="cpu")


@lru_cache(maxsize=64)
def _reversed_queries(tokens: int, group: int, tile: int, positions: int) -> Tensor:
    """int64 [queries]: positions - 1 - token of each query row; padding repeats the last token."""
    queries = -(-tokens * group // tile) * tile
    token = (arange(queries) // group).clamp_max_(tokens - 1)
    return positions - 1 - token


@lru_cache(maxsize=64)
def _bands(positions: int, keys: int, window: int) -> Tensor:
    """float32 [positions, keys] view: row ``positions - 1 - p`` is the mask of a query at p.

    All rows are windows into one vector of 2 * positions: 0 (the keys up to p), then `MASKED`.
    """
    vector = torch.zeros(2 * positions, dtype=torch.float32, device="cpu")
    vector[positions:] = MASKED
    if window:
        vector[: max(positions - window, 0)] = MASKED
    return vector.as_strided((positions, keys), (1, 1))
