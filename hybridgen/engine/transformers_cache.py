"""Our cache and attention inside a transformers model's own forward.

The model calls ``cache.update(keys, values, layer)`` and then an attention function that it finds
by the name in its config. `CachedLayer` hands the new keys and values through, marked with itself;
`attend`, registered as `NAME`, finds the layer by that mark, so that a call which did not come
through the cache cannot be mistaken. What differs between models (scale, soft cap, window, sizes of
heads) is what `transformers_probe` has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import CacheLayerMixin

from hybridgen.kernels.attention import attention

NAME = "hybridgen"
_MARK = "_hybridgen_layer"


@dataclass(frozen=True)
class LayerShape:
    """What a model's calls say of one layer's attention.

    heads, kv_heads      of queries, and of keys and values
    key_dim, value_dim   elements of one head's query or key, and of its value
    window               keys a query sees, its own included; 0 for all
    scaling, softcap     of the scores; softcap 0 for none
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int
    scaling: float
    softcap: float


@dataclass
class Step:
    """What the layers of one forward share: see `kernels.attention`."""

    caches: Sequence[Tensor]
    start: Tensor
    cos: Tensor
    sin: Tensor


class Layer(CacheLayerMixin):
    """A cache layer that keeps nothing itself: it marks what goes through it.

    The model is told its tokens' positions, and is told nothing of the past.
    """

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        setattr(key_states, _MARK, self)
        setattr(value_states, _MARK, self)
        return key_states, value_states

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.17


def layer_of(keys: Tensor, values: Tensor) -> Layer | None:
    """The layer that both came through as they are."""
    layer: Layer | None = getattr(keys, _MARK, None)
    return layer if getattr(values, _MARK, None) is layer else None


class CachedLayer(Layer):
    """One layer over the bound cache."""

    def __init__(self, index: int, shape: LayerShape, step: Step) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index, self.shape, self.step = index, shape, step

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write keys and values, and let the queries see the cache: [1, rows, heads, value_dim].

        All [1, heads, rows, dim], already rotated. The op divides scores by the root of the
        cache's head size, which may be padded: the query makes up for it.
        """
        shape, step = self.shape, self.step
        cache = step.caches[self.index]
        size = cache.shape[4]
        if query.is_cpu:
            query = query.float()
        factor = shape.scaling * size**0.5
        if abs(factor - 1) > 1e-6:
            query = query * factor
        parts = [
            F.pad(x, (0, size - x.shape[3])) if x.shape[3] < size else x
            for x in (query, keys, values)
        ]
        rows = query.shape[2]
        qkv = torch.cat(parts, 1)[0].transpose(0, 1).reshape(rows, -1).to(cache.dtype)
        seen: Tensor = attention(
            qkv, cache, step.start, step.cos, step.sin, None, 0.0, shape.window, shape.softcap
        )
        return seen.view(1, rows, shape.heads, size)[..., : shape.value_dim].to(values.dtype)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface."""
    layer = layer_of(key, value)
    if not isinstance(layer, CachedLayer):
        raise RuntimeError(f"{type(module).__name__} called attention without its cache")
    return layer.attend(query, key, value), None


AttentionInterface.register(NAME, attend)
