"""Training's attention in blocks is causal attention, whole, continued and in its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridgen.pair import attention


def _inputs(queries: int, keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries)
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def _expected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    rows, columns = query.shape[2], key.shape[2]
    seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(1, 1), (127, 127), (128, 128), (129, 129), (300, 300), (1, 300), (130, 300)],
)
def test_attention_in_blocks_is_causal_attention(queries: int, keys: int) -> None:
    tensors = _inputs(queries, keys)
    found, weights = attention.attend(nn.Identity(), *tensors, attention_mask=None)
    expected = _expected(*tensors)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, tensors, direction)
    # Scores are rounded to float32 on the way.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for found_gradient, gradient in zip(
        gradients, torch.autograd.grad(expected, tensors, direction), strict=True
    ):
        torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=1e-4)
    assert weights is None


def test_a_mask_is_refused_because_it_would_be_ignored() -> None:
    tensors = _inputs(4, 4)
    with pytest.raises(ValueError, match="attention_mask must be None"):
        attention.attend(nn.Identity(), *tensors, attention_mask=torch.ones(2, 1, 4, 4))
