"""Attention of a piece of one prompt over all of that prompt up to it, by the libraries' kernels.

    output = softmax(q . k / sqrt(D)) . v          each token over the keys up to its own

For a prompt it is bound by arithmetic, which FlashAttention does best: on a GPU the library of that
name where it is installed (Dao 2023, "FlashAttention-2"), else torch's own. Their bits depend on
the shapes: of the piece and of the keys before it, so where a prompt is cut must depend on that
prompt alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels.attention_plan import MASKED

try:
    from flash_attn import flash_attn_func
except ImportError:
    flash_attn_func = None

ALIGNED = 16  # elements; on a GPU torch's kernels want masks whose rows begin so


class Masks:
    """Which keys the tokens of a piece see, for all pieces and layers of several prompts.

    longest  tokens of the longest of these prompts
    piece    most tokens of a piece; a piece begins at a multiple of `ALIGNED`
    group    query heads per key head

    That depends on nothing but how far back a key is, so one tensor a window holds all masks.
    """

    def __init__(
        self, longest: int, piece: int, group: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.group, self.dtype, self.device = group, dtype, device
        self._piece = _align(min(piece, longest))
        self._reach = _align(longest)
        self._whole: dict[int, Tensor] = {}

    def before(self, first: int, window: int) -> int:
        """How many of the ``first`` tokens before a piece it has to read."""
        return min(first, _align(window - 1)) if window else first

    def part(self, count: int, before: int, window: int) -> Tensor:
        """[1, 1, count * group, before + count] of 0 and `MASKED`, of ``count`` tokens.

        The queries of a token stand together. ``before`` and ``window`` as in `before`.
        """
        if window not in self._whole:
            self._whole[window] = self._make(window)
        whole = self._whole[window]
        here = whole.shape[3] - self._piece
        return whole[:, :, : count * self.group, here - before : here + count]

    def _make(self, window: int) -> Tensor:
        reach = self.before(self._reach, window)
        key = torch.arange(-reach, self._piece, dtype=torch.int64, device=self.device)
        query = key[reach:].unsqueeze(1)
        hidden = key > query
        if window:
            hidden |= key <= query - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(hidden, MASKED).repeat_interleave(self.group, 0)
        return mask.unsqueeze(0).unsqueeze(0)


def prompt_attention(
    q: Tensor, kv: Tensor, window: int, dtype: torch.dtype, masks: Masks
) -> Tensor:
    """The attention of a prompt's last n tokens so far.

    q       [n, q_heads, D], contiguous
    kv      [2 (k, v), kv_heads, tokens so far, D], the last axis contiguous
    window  keys a query sees, its own included; 0 for all
    dtype   to compute in; sums are float32 all the same
    masks   of this dtype and device, and of these heads
    Returns [n, kv_heads, q_heads / kv_heads, D] in ``dtype``, any strides.
    """
    count, _, dim = q.shape
    heads, first = kv.shape[1], kv.shape[2] - count
    before = masks.before(first, window)
    q, kv = q.to(dtype), kv[:, :, first - before :].to(dtype)
    if q.is_cuda and flash_attn_func is not None and dtype != torch.float32:
        sides = (window - 1, 0) if window else (-1, -1)
        k, v = kv.transpose(1, 2).unsqueeze(1).unbind()
        seen: Tensor = flash_attn_func(q.unsqueeze(0), k, v, causal=True, window_size=sides)
        return seen.view(count, heads, -1, dim)
    # A key head's queries of all tokens are the rows of one product: they share its keys, and the
    # kernel has so many more rows at a time.
    q = q.view(count, heads, -1, dim).transpose(0, 1).reshape(1, heads, -1, dim)
    k, v = kv.unsqueeze(1).unbind()
    seen = F.scaled_dot_product_attention(q, k, v, masks.part(count, before, window))
    return seen.view(heads, count, -1, dim).transpose(0, 1)


def _align(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED
