"""A Llama's or Qwen3's forward as OpenVINO wants it: traced once, keys and values as its state.

Exporters of others hold transformers at older versions than hybridgen needs. What is written is of
the form that they write, which OpenVINO's own passes know: `input_ids`, `attention_mask`,
`position_ids` and `beam_idx` in, `logits` out, and a variable for each layer's keys and values.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridgen.benchmarks.peers.base import check_family

INPUTS = ("input_ids", "attention_mask", "position_ids", "beam_idx")


def write_openvino(folder: Path, target: Path) -> None:
    """Write openvino_model.xml and .bin into ``target``, in float32: a pipeline rounds as it loads.

    Raises CannotRun for a model that is neither a Llama nor a Qwen3.
    """
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    check_family(model.config)
    plain = Plain(model)
    with torch.no_grad():
        traced = torch.jit.trace(plain, plain.example(), check_trace=False)
        exported = openvino.convert_model(traced, example_input=plain.example())
    names = [*INPUTS, *(f"past.{index}" for index in range(2 * plain.layers))]
    for given, name in zip(exported.inputs, names, strict=True):
        given.get_tensor().set_names({name})
        given.get_node().set_friendly_name(name)
        given.get_node().set_partial_shape(openvino.PartialShape(plain.shape_of(name)))
    outputs = ["logits", *(f"present.{index}" for index in range(2 * plain.layers))]
    for made, name in zip(exported.outputs, outputs, strict=True):
        made.get_tensor().set_names({name})
    exported.validate_nodes_and_infer_types()
    pairs = {f"past.{index}": f"present.{index}" for index in range(2 * plain.layers)}
    apply_make_stateful_transformation(exported, pairs)
    _begin_empty(exported)
    openvino.save_model(exported, target / "openvino_model.xml", compress_to_fp16=False)


def _begin_empty(model: Any) -> None:
    """Each variable begins with no position, in as many rows as the call has."""
    from openvino import opset13 as ops

    rows = ops.gather(ops.shape_of(model.input("input_ids")), [0], 0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [size.min_length for size in node.get_output_partial_shape(0)]
            shape = ops.concat([rows, ops.constant(sizes[1:], dtype=np.int64)], axis=0)
            node.set_arguments([ops.broadcast(ops.constant(0.0, dtype=np.float32), shape)])
    model.validate_nodes_and_infer_types()


class Plain(nn.Module):
    """The forward with the weights of a transformers model and nothing but what is needed."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model.model
        self.head = model.lm_head
        config = model.config
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.groups = config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs of a text that has begun: two rows of two new tokens after three."""
        past = [torch.zeros(2, self.groups, 3, self.dim) for _ in range(2 * self.layers)]
        ids = torch.ones(2, 2, dtype=torch.int64)
        mask = torch.ones(2, 5, dtype=torch.int64)
        return ids, mask, torch.tensor([[3, 4]] * 2), torch.arange(2, dtype=torch.int32), *past

    def shape_of(self, name: str) -> list[int]:
        """Of an input, -1 where it varies."""
        if name.startswith("past"):
            return [-1, self.groups, -1, self.dim]
        return [-1] if name == "beam_idx" else [-1, -1]

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        x = self.model.embed_tokens(ids)
        angles = positions[:, None, :, None].float() * self.model.rotary_emb.inv_freq
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos(), angles.sin()
        seen = self._seen(mask, ids.shape[1])
        present = []
        for index, layer in enumerate(self.model.layers):
            keys = past[2 * index].index_select(0, rows)
            values = past[2 * index + 1].index_select(0, rows)
            normed = layer.input_layernorm(x)
            q, k, v = self._projected(layer.self_attn, normed)
            keys = torch.cat((keys, rotated(k, cos, sin)), 2)
            values = torch.cat((values, v), 2)
            present += [keys, values]
            mixed = F.scaled_dot_product_attention(
                rotated(q, cos, sin), self._repeated(keys), self._repeated(values), attn_mask=seen
            )
            mixed = mixed.transpose(1, 2).reshape(ids.shape[0], -1, self.heads * self.dim)
            x = x + layer.self_attn.o_proj(mixed)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.head(self.model.norm(x)), *present

    def _projected(self, attention: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def heads(projected: torch.Tensor, count: int, norm: Any) -> torch.Tensor:
            split = projected.view(x.shape[0], -1, count, self.dim)
            return (split if norm is None else norm(split)).transpose(1, 2)

        return (
            heads(attention.q_proj(x), self.heads, getattr(attention, "q_norm", None)),
            heads(attention.k_proj(x), self.groups, getattr(attention, "k_norm", None)),
            heads(attention.v_proj(x), self.groups, None),
        )

    def _repeated(self, x: torch.Tensor) -> torch.Tensor:
        """[B, groups, n, dim] to [B, heads, n, dim]."""
        each = self.heads // self.groups
        spread = x[:, :, None].expand(-1, -1, each, -1, -1)
        return spread.reshape(x.shape[0], self.heads, -1, self.dim)

    def _seen(self, mask: torch.Tensor, new: int) -> torch.Tensor:
        """[B, 1, new, all], 0 where a key is seen and the least float where not."""
        whole = mask.shape[1]
        order = torch.arange(whole)
        causal = order[None, :] <= order[whole - new :, None]
        seen = causal[None, None] & (mask[:, None, None] == 1)
        return torch.zeros(()).masked_fill(~seen, torch.finfo(torch.float32).min)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[B, heads, n, dim] turned by its positions' angles, [B, 1, n, dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
