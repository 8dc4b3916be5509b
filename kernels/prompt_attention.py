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


def prompt_attention(
    q: Tensor,
    kv: Tensor,
    window: int,
    dtype: torch.dtype,
    masks: dict[tuple[int, int, int], Tensor],
) -> Tensor:
    """The attention of a prompt's last n tokens so far.

    q       [n, q_heads, D], contiguous
    kv      [2 (k, v), kv_heads, tokens so far, D], the last axis contiguous
    window  keys a query sees, its own included; 0 for all
    dtype   to compute in; sums are float32 all the same
    masks   those made before for other layers, of the same dtype and device; a missing one is added
    Returns [n, q_heads, D] in ``dtype``, any strides.
    """
    count, end = len(q), kv.shape[2]
    lowest = max(end - count - window + 1, 0) if window else 0
    q, kv = q.to(dtype), kv[:, :, lowest:].to(dtype)
    if q.is_cuda and flash_attn_func is not None and dtype != torch.float32:
        sides = (window - 1, 0) if window else (-1, -1)
        k, v = kv.transpose(1, 2).unsqueeze(1).unbind()
        seen: Tensor = flash_attn_func(q.unsqueeze(0), k, v, causal=True, window_size=sides)
        return seen.squeeze(0)
    # A key head is a batch entry of its own, whose keys its queries share without a copy.
    heads = kv.shape[1]
    group = q.shape[1] // heads
    q = q.view(count, heads, group, -1).permute(1, 2, 0, 3)
    k, v = kv.unsqueeze(2).expand(-1, -1, group, -1, -1).unbind()
    shape = count, end - lowest, window
    if shape not in masks:
        masks[shape] = _mask(*shape, dtype, q.device)
    seen = F.scaled_dot_product_attention(q, k, v, masks[shape])
    return seen.permute(2, 0, 1, 3).flatten(1, 2)


def _mask(count: int, keys: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 1, count, keys] of 0 and `MASKED`: the last ``count`` of ``keys`` tokens look back."""
    query = torch.arange(keys - count, keys, dtype=torch.int64, device=device).unsqueeze(1)
    key = torch.arange(keys, dtype=torch.int64, device=device)
    hidden = key > query
    if window:
        hidden |= key <= query - window
    mask = torch.zeros(1, 1, count, keys, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, MASKED)
