"""Whether a transformers model can run over our cache, found by running it without weights.

A copy of the model on the meta device reads three tokens. Every layer must come through the cache
and then through the attention function with just these keys and values, under a mask that is causal
or a sliding window, and nothing may be decided by values: a round decides nothing on the host.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

from hybridgen.engine.rows_alone import curved_modules, is_loose
from hybridgen.engine.transformers_cache import Layer, LayerShape, layer_of

NAME = "hybridgen_probe"
FAR = 1 << 20  # a query this far has every window behind it
HARMLESS = ("position_ids", "position_embeddings", "cache_position")
_MASK = "_hybridgen_mask"

MaskFunction = Callable[..., Any]


class Unfit(ValueError):
    """The model cannot run over our cache; the message says why."""


@dataclass(frozen=True)
class Facts:
    """What the probe has seen of a model.

    layers             in the order of the cache
    cache_argument     what its forward calls the cache
    last_logits_only   its forward can be asked for the last token's logits alone
    vocab_size         ids that it both embeds and predicts
    touches_host       what its forward does on the host, so that no graph can capture it, or None
    is_loose           it calls curved functions outside of modules: see `rows_alone`
    """

    layers: tuple[LayerShape, ...]
    cache_argument: str
    last_logits_only: bool
    vocab_size: int
    touches_host: str | None
    is_loose: bool


class _ProbeLayer(Layer):
    """Notes what the calls of a layer's attention ask for, but for the window, and their masks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[LayerShape, MaskFunction]] = []


class _ProbeCache(Cache):
    """It grows with the layers that the model asks for."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_ProbeLayer)

    def _recurrent(self, *args: Any, **kwargs: Any) -> Any:
        raise Unfit("it keeps a recurrent state, which cannot roll back rejected tokens")

    get_conv_state = update_conv_state = _recurrent
    get_recurrent_state = update_recurrent_state = has_previous_state = _recurrent


class _Watch(TorchDispatchMode):
    """Notes the first op with a tensor that is not on the meta device, and loose functions."""

    touches_host: str | None = None
    is_loose = False
    reads_positions = False
    _inside = False  # a module that is known to be curved

    def __init__(self, positions: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._positions = positions.untyped_storage()._cdata

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self.touches_host = self.touches_host or f"{func} on a {tensor.device.type} tensor"
            elif isinstance(tensor, Tensor):
                self.reads_positions |= tensor.untyped_storage()._cdata == self._positions
        self.is_loose |= not self._inside and bool(args) and is_loose(func, args[0])
        return result

    def inside(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the forward of a curved module."""
        self._inside = True
        result = forward(*args, **kwargs)
        self._inside = False
        return result


def probe(model: PreTrainedModel) -> Facts:
    """Run a weightless copy of ``model``, which may be on any device. Raises `Unfit`."""
    kind = type(model).__name__
    arguments = inspect.signature(model.forward).parameters
    names = [name for name in ("cache", "past_key_values") if name in arguments]
    if model.config.is_encoder_decoder:
        raise Unfit(f"{kind} is an encoder and a decoder, not a causal language model")
    if not names or "position_ids" not in arguments:
        raise Unfit(f"{kind} takes no cache or no positions: rows of different lengths need both")
    try:
        logits, cache, watch = _run(model, names[0])
        layers = _shapes(cache)
    except Unfit as error:
        raise Unfit(f"{kind} is not supported: {error}") from None
    except Exception as error:  # whatever a forward without values comes upon
        raise Unfit(
            f"{kind} is not supported: it does not run over a cache of keys and values alone, or "
            f"decides by values on the host ({error})"
        ) from error
    embedding: Any = model.get_input_embeddings()
    return Facts(
        layers=layers,
        cache_argument=names[0],
        last_logits_only="logits_to_keep" in arguments,
        vocab_size=min(logits.shape[2], len(embedding.weight)),
        touches_host=watch.touches_host,
        is_loose=watch.is_loose,
    )


def _run(model: PreTrainedModel, cache_argument: str) -> tuple[Tensor, _ProbeCache, _Watch]:
    twin: Any = copied(model, NAME, "batched_mm", torch.device("meta"))
    ids = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    positions = ids.clone()
    cache, watch = _ProbeCache(), _Watch(positions)
    for part, _ in curved_modules(twin):
        module: Any = part
        module.forward = partial(watch.inside, module.forward)
    given: dict[str, Any] = {"position_ids": positions, cache_argument: cache}
    with torch.no_grad(), watch:
        logits: Tensor = twin(input_ids=ids, use_cache=True, **given).logits
    if not watch.reads_positions:
        raise Unfit("its forward does not read the positions that it is given")
    return logits, cache, watch


def _shapes(cache: _ProbeCache) -> tuple[LayerShape, ...]:
    """What the layers' calls have shown. Raises `Unfit` where it is not one shape a layer."""
    windows: dict[MaskFunction, int] = {}
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, _ProbeLayer)
        found = set()
        for shape, mask in layer.calls:
            if mask not in windows:
                windows[mask] = window_of(mask)
            found.add(replace(shape, window=windows[mask]))
        if not found:
            raise Unfit("it does not call attention through the interface of transformers")
        if len(found) > 1:
            raise Unfit("one layer calls attention in different ways")
        layers.append(found.pop())
    if not layers:
        raise Unfit("it does not call its cache and attention as transformers' own models do")
    if len({layer.kv_heads for layer in layers}) > 1:
        raise Unfit("its layers have different numbers of key heads")
    return tuple(layers)


def window_of(mask_function: MaskFunction) -> int:
    """The window of a mask, 0 for a causal one. Raises `Unfit` for any other mask.

    mask_function   transformers' kind: of row, head, query and key to whether the key is seen
    """
    found = set()
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    for query in (FAR, FAR + 17):  # a mask of chunks would show another number
        keys = torch.arange(query + 2, dtype=torch.int64, device="cpu")
        try:
            seen = mask_function(zero, zero, zero + query, keys).expand(len(keys))
            count = int(seen.sum())
            is_suffix = not seen[-1] and bool(seen[query + 1 - count : query + 1].all())
        except (RuntimeError, NotImplementedError):  # it looks at tensors of the model's
            count, is_suffix = 0, False
        found.add((0 if count == query + 1 else count) if count and is_suffix else -1)
    if len(found) > 1 or found == {-1}:
        raise Unfit("its mask is neither causal nor a sliding window")
    return found.pop()


def copied(
    model: PreTrainedModel, attention: str, experts: str, device: torch.device | None = None
) -> PreTrainedModel:
    """A copy of the modules of ``model``, for evaluation.

    attention, experts   the names of the functions that it calls for them
    device               None: the parameters are the model's own, buffers are copied; else both
                         are copied to that device

    Frequencies that would follow the length of the text are fixed to those of short ones: they
    would change with other rows of the batch.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        moved = parameter if device is None else nn.Parameter(parameter.to(device), False)
        memo[id(parameter)] = moved
    memo |= {id(buffer): buffer.to(device, copy=True) for buffer in model.buffers()}
    twin: PreTrainedModel = copy.deepcopy(model, memo).eval()
    for module in twin.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            config._attn_implementation = attention
            config._experts_implementation = experts
        _fix_frequencies(module)
    return twin


def _fix_frequencies(module: Any) -> None:
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        kinds = {"": kinds}
    for layer, kind in (kinds or {}).items():
        if kind == "longrope" or "dynamic" in str(kind):
            prefix = f"{layer}_" if layer else ""
            frequencies = getattr(module, f"{prefix}inv_freq")
            original = getattr(module, f"{prefix}original_inv_freq")
            setattr(
                module, f"{prefix}inv_freq", original.detach().to(frequencies.device, copy=True)
            )
            if layer:
                module.rope_type[layer] = "default"
            else:
                module.rope_type = "default"


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Note what a layer's call asks for; raises `Unfit` for what we cannot do."""
    layer, mask = layer_of(key, value), getattr(attention_mask, _MASK, None)
    if not isinstance(layer, _ProbeLayer):
        raise Unfit("it changes keys or values between its cache and its attention")
    if mask is None:
        raise Unfit("it adds a bias to its attention (alibi, say), or makes a mask of its own")
    for name, given in kwargs.items():
        if isinstance(given, Tensor) and name not in HARMLESS:
            raise Unfit(f"its attention takes {name}, which is not supported")
    scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
    shape = LayerShape(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        key_dim=key.shape[3],
        value_dim=value.shape[3],
        window=0,
        scaling=float(key.shape[3] ** -0.5 if scaling is None else scaling),
        softcap=float(softcap or 0),
    )
    layer.calls.append((shape, mask))
    return query.new_empty(*query.shape[::2], query.shape[1], value.shape[3]), None


def _mask(*args: Any, mask_function: Any = None, **kwargs: Any) -> Tensor:
    """A mask that says what it would hide."""
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    setattr(mask, _MASK, mask_function)
    return mask


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
