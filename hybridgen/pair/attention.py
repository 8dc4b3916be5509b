"""Causal attention for training on a CPU: blocks of queries, products in bfloat16.

torch's attention was hardly faster in bfloat16 than in float32 on a processor without AMX, and took
a third of a step. Here a block's scores lie in a cache while softmax reads them, and a block meets
no key behind its last query.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "hybridgen_blocks"
BLOCK = 128


def use(model: PreTrainedModel) -> None:
    """Let ``model`` attend in blocks; it then takes no attention mask."""
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Outputs [B, Q, H, D] of queries [B, H, Q, D], the last Q of the T keys [B, G, T, D]."""
    if attention_mask is not None:
        raise ValueError("attention in blocks is causal: attention_mask must be None")
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    before = key.shape[2] - query.shape[2]
    outputs = []
    for first in range(0, query.shape[2], BLOCK):
        rows = query[:, :, first : first + BLOCK]
        seen = before + first + rows.shape[2]
        scores = (rows @ key[:, :, :seen].transpose(-1, -2)).float()
        scores = scores + _future(rows.shape[2], seen, scores.device)
        outputs.append(scores.softmax(-1).to(value.dtype) @ value[:, :, :seen])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _future(rows: int, seen: int, device: torch.device) -> torch.Tensor:
    """-inf [rows, seen] where a key lies behind a query, else 0; the last key is the last row's."""
    square = torch.full((rows, rows), float("-inf"), dtype=torch.float32, device=device).triu(1)
    return F.pad(square, (seen - rows, 0))


AttentionInterface.register(NAME, attend)
