"""The fused weights of the native decoder, made of a transformers model without a second copy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hybridgen.engine.families import Family, check, multipliers

PRODUCTS = ("qkv", "output", "gate_up", "down")


class Linear(NamedTuple):
    """What a product takes: weight [out, in], bias [out] or None, scale [out] of an int8 weight."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Linear":
        """The same with ``change`` applied to what is there."""
        return Linear(*(None if tensor is None else change(tensor) for tensor in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class LayerWeights:
    """One layer.

    qk_norm is float32 [q_heads + kv_heads, head_dim] on CPU, else the model's dtype.
    """

    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    window: int
    rotates: bool

    @property
    def products(self) -> tuple[Linear, Linear, Linear, Linear]:
        """Those of `PRODUCTS`."""
        return self.qkv, self.output, self.gate_up, self.down

    def map(self, change: Callable[[Tensor], Tensor]) -> "LayerWeights":
        """The same with ``change`` applied to every tensor."""
        changed: dict[str, Any] = {
            name: part.map(change) if isinstance(part, Linear) else change(part)
            for name, part in vars(self).items()
            if isinstance(part, (Tensor, Linear))
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class Weights:
    """A whole model. The head's weight is ``embedding`` where they are tied, unless it is int8.

    scale   what the rows of the embedding are multiplied with as they are read
    """

    embedding: Tensor
    layers: list[LayerWeights]
    norm: Tensor
    head: Linear
    scale: float = 1.0

    @property
    def is_tied(self) -> bool:
        """Whether the head reads the embedding itself."""
        return self.head.weight is self.embedding

    def map(self, change: Callable[[Tensor], Tensor]) -> "Weights":
        """The same structure with ``change`` applied to every tensor once (tied stay tied)."""
        embedding = change(self.embedding)
        head = Linear(embedding) if self.is_tied else self.head.map(change)
        layers = [layer.map(change) for layer in self.layers]
        return Weights(embedding, layers, change(self.norm), head, self.scale)

    def change_products(self, change: Callable[[Linear], Linear]) -> "Weights":
        """Put ``change(product)`` in the place of each product, one by one; the head comes last.

        What is replaced is gone before the next one is made, where nothing else holds it.
        """
        layers = self.layers
        for i in range(len(layers)):
            for name in PRODUCTS:
                changed: dict[str, Any] = {name: change(getattr(layers[i], name))}
                layers[i] = replace(layers[i], **changed)
        return replace(self, head=change(self.head))

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: matrices may be kept in fewer bits, norms and biases are not."""
        return self.norm.dtype

    def rows(self, tokens: Tensor) -> Tensor:
        """The residual stream [N, H] before the first layer, of int64 ``tokens`` [N], on a CPU."""
        return self.scaled(self.embedding.index_select(0, tokens).to(self.dtype))

    def scaled(self, rows: Tensor) -> Tensor:
        """``rows`` of the embedding, multiplied in place by ``scale``."""
        return rows if self.scale == 1 else rows.mul_(self.scale)

    def tensors(self) -> list[Tensor]:
        """Every tensor once."""
        found: list[Tensor] = []

        def collect(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(collect)
        return found


@torch.no_grad()
def fuse(
    model: PreTrainedModel, family: Family | None = None, dtype: torch.dtype | None = None
) -> Weights:
    """The fused weights of ``model``, without a second copy of them.

    family   of the model, where `check` has let its config through; None: it is checked here
    dtype    what norms and biases are converted to; None: they stay the model's

    The model's own parameters become views of the fused tensors, layer by layer, so it still works
    and shares its memory with the decoder. Multipliers cost no product of their own: the residual
    stream is kept divided by that of its blocks, which norms with the epsilon over its square do
    not notice, so the embedding's rows alone are scaled, and the final norm for the logits; that of
    the scores is in the rotary table. ValueError for models the native forward cannot run
    (see `check`), quantised or adapted layers, and weights spread over several devices.
    """
    family = family or check(model.config)
    _check_modules(model)
    body: Any = model.model
    used = body.layers[: model.config.num_hidden_layers]  # transformers runs no more of them
    layers = [_fuse_layer(layer, family, i, model.config) for i, layer in enumerate(used)]
    embedding = body.embed_tokens.weight.data
    tied = model.lm_head.weight is body.embed_tokens.weight
    head = embedding if tied else model.lm_head.weight.data
    norm, times = body.norm.weight.data.to(dtype or embedding.dtype), multipliers(model.config)
    if times.logits != 1:
        norm = norm * times.logits
    weights = Weights(embedding, layers, norm, Linear(head), times.embedding / times.residual)
    if dtype is None:
        return weights
    return weights.map(lambda tensor: tensor if tensor.dim() == 2 else tensor.to(dtype))


def _check_modules(model: PreTrainedModel) -> None:
    name = type(model).__name__
    for path, module in model.model.layers.named_modules():
        if path.endswith("_proj") and type(module) is not nn.Linear:
            raise ValueError(
                f"{name}: {path} is {type(module).__name__}, not a plain Linear (quantised or "
                "adapted layers are not supported: merge adapters, load unquantised)"
            )
    places = {(parameter.device, parameter.dtype) for parameter in model.parameters()}
    if len(places) != 1:
        raise ValueError(f"{name}: all parameters must share one device and dtype, not {places}")


def _fuse_layer(layer: Any, family: Family, index: int, config: PretrainedConfig) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.data,
        qkv=_fused(attention, "qkv_proj", ["q_proj", "k_proj", "v_proj"]),
        qk_norm=_qk_norm(attention, config) if family.qk_norm else None,
        output=_linear(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=_fused(mlp, "gate_up_proj", ["gate_proj", "up_proj"]),
        down=_linear(mlp.down_proj),
        window=family.window(config, index),
        rotates=family.rotates(config, index),
    )


def _linear(module: Any) -> Linear:
    return Linear(module.weight.data, None if module.bias is None else module.bias.data)


def _fused(module: Any, whole: str, parts: list[str]) -> Linear:
    """A product that the model has as a whole, or in parts."""
    if hasattr(module, whole):
        return _linear(getattr(module, whole))
    return _stack([getattr(module, part) for part in parts])


def _stack(linears: list[Any]) -> Linear:
    """Weights (and biases) of several products as one; the modules become views of it."""
    weight = _stack_parameters([linear.weight for linear in linears])
    if linears[0].bias is None:
        return Linear(weight)
    return Linear(weight, _stack_parameters([linear.bias for linear in linears]))


def _stack_parameters(parameters: list[nn.Parameter]) -> Tensor:
    made = _made_before(parameters)
    if made is not None:
        return made
    fused = torch.cat([parameter.data for parameter in parameters])
    parts = torch.split(fused, [len(parameter) for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return fused


def _made_before(parameters: list[nn.Parameter]) -> Tensor | None:
    """The tensor that another decoder of this model made, of which the parameters are the parts."""
    first = parameters[0].data
    place, end = first.untyped_storage().data_ptr(), first.storage_offset()
    for parameter in parameters:
        here = parameter.untyped_storage().data_ptr(), parameter.storage_offset()
        if here != (place, end) or not parameter.is_contiguous():
            return None
        end += parameter.numel()
    shape = sum(len(parameter) for parameter in parameters), *first.shape[1:]
    return first.as_strided(shape, first.stride(), first.storage_offset())


def _qk_norm(attention: Any, config: PretrainedConfig) -> Tensor:
    q, k = attention.q_norm.weight.data, attention.k_norm.weight.data
    heads = [q] * config.num_attention_heads + [k] * config.num_key_value_heads
    weight = torch.stack(heads)
    return weight.float() if weight.is_cpu else weight
