"""The native decoder: a few tokens a row in, logits out, over a static cache.

It holds no length. The caller says where each row's tokens go, and every token sees the positions
up to its own: rolling back is forgetting, the next call overwrites. One layer is five ops:

    [RMSNorm + QKV] [qk-norm + RoPE + cache write + attention] [output + residual]
    [RMSNorm + gate-up + SiLU * mul] [down + residual]
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from hybridgen.engine.blocks import in_blocks
from hybridgen.engine.cache import CacheLayout
from hybridgen.engine.families import Family, multipliers
from hybridgen.engine.prefill import PromptReader
from hybridgen.engine.prompt_graphs import Capture
from hybridgen.engine.rope import context, head_dim, rope_table, rotations
from hybridgen.engine.weights import LayerWeights, Linear, Weights, fuse
from hybridgen.kernels.attention import attention
from hybridgen.kernels.attention_plan import is_compiled, prepare
from hybridgen.kernels.int8_cpu import quantise_for_cpu
from hybridgen.kernels.layers import embed
from hybridgen.kernels.linear import (
    FEW_ROWS,
    can_pack,
    linear_residual,
    norm_gated_linear,
    norm_linear,
    pack,
    reads_plain,
    suits,
)
from hybridgen.kernels.quantise import quantise
from hybridgen.kernels.query_tile import KEYS, query_tile
from hybridgen.kernels.row_tile import row_tile
from hybridgen.kernels.step import step


def cache_layout(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> CacheLayout:
    """What a model of this config keeps per position; float32 on CPU: attention computes in it."""
    kept = torch.float32 if device.type == "cpu" else dtype
    heads = int(config.num_key_value_heads)
    return CacheLayout(int(config.num_hidden_layers), heads, head_dim(config), kept)


class Decoder:
    """A model of one of `families.FAMILIES` over a bound cache.

    config            one that `families.check` lets through, as `weights.fuse` makes sure
    batch_invariant   a token's logits have the same bits however many rows and tokens are computed
                      with it; on CPU this may pad rows, so a draft model turns it off
    """

    def __init__(
        self,
        config: PretrainedConfig,
        weights: Weights,
        generation_config: GenerationConfig | None = None,
        batch_invariant: bool = True,
    ) -> None:
        self.config = config
        self.generation_config = generation_config
        self.batch_invariant = batch_invariant
        self._capture: Capture | None = None
        self._prompt_dtype: torch.dtype | None = None
        self._step: Any = None  # see `step.step`
        self.vocab_size = weights.head.weight.shape[0]
        self.head_dim = head_dim(config)
        self.group = config.num_attention_heads // config.num_key_value_heads
        times = multipliers(config)
        self._scores = times.scores
        # The residual stream is kept divided by its multiplier (see `weights.fuse`).
        self.eps = float(config.rms_norm_eps) / times.residual**2
        self._use(weights)
        self.windows = tuple(sorted({layer.window for layer in weights.layers}))
        self._rotates = tuple(layer.rotates for layer in weights.layers)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        batch_invariant: bool = True,
        family: Family | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Decoder":
        """A decoder that shares the weights of a loaded model (see `weights.fuse`).

        dtype   what it computes in, where that is not the weights': float32, on a CPU whose
                products take weights of bfloat16 (`linear.reads_plain`)
        """
        generation_config = getattr(model, "generation_config", None)
        weights = fuse(model, family, dtype)
        return cls(model.config, weights, generation_config, batch_invariant)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        weights = f", {self.quantised} weights" if self.quantised else ""
        return f"Decoder({self.config.model_type}, {dtype}{weights}, {self.device})"

    def pack(self) -> None:
        """Lay the weights out for CPU products, layer by layer, so that no second copy is held.

        For weights that nothing else uses: a transformers model that shares them would keep the
        plain ones alive. Those that compiled products take stay as they are. The library's products
        of one float32 row are faster plain, so there a draft keeps its own.
        """
        plain = reads_plain(self.dtype)
        few = self.dtype == torch.float32 and not self.batch_invariant
        if self.device.type != "cpu" or (few and not plain) or not can_pack(self.dtype):
            return

        def packed(linear: Linear) -> Linear:
            if plain and suits(linear.weight):
                return linear
            return linear._replace(weight=pack(linear.weight))

        self._change_products(packed)

    def quantise(self, device: torch.device | None = None) -> None:
        """Make the products' weights int8, one by one, and move everything to ``device``.

        The embedding's rows, norms and biases stay as they are; a head that was tied is a copy. As
        with `pack`, only what nothing else uses is freed. Raises ValueError for NaN and infinity.
        """
        place, dtype = device or self.device, self.dtype
        on_cpu = place.type == "cpu"

        def quantised(linear: Linear) -> Linear:
            plain = linear.weight.to(place)
            weight, scale = quantise_for_cpu(plain, dtype) if on_cpu else quantise(plain)
            return Linear(weight, linear.bias, scale)

        self._change_products(quantised)
        weights = self.weights.map(lambda tensor: tensor.to(place))
        if not on_cpu:  # a CPU keeps it in float32
            for i, layer in enumerate(weights.layers):
                if layer.qk_norm is not None:
                    weights.layers[i] = replace(layer, qk_norm=layer.qk_norm.to(dtype))
        self._use(weights)

    def _change_products(self, change: Callable[[Linear], Linear]) -> None:
        self._use(self.weights.change_products(change))

    def _use(self, weights: Weights) -> None:
        """Compute with these from now on; for no number of threads are the row counts known."""
        self.weights, self._threads, self._step = weights, 0, None

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    @property
    def prompt_dtype(self) -> torch.dtype:
        """What the products of prompts that are longer than a step are computed in."""
        return self._prompt_dtype or self.dtype

    @property
    def quantised(self) -> str | None:
        """The format of the products' weights, "int8"; None where it is the dtype."""
        return None if self.weights.head.scale is None else "int8"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a forward reads whole: of the embedding it takes rows."""
        weights = self.weights
        return sum(t.nbytes for t in weights.tensors() if t is not weights.embedding) + (
            weights.embedding.nbytes if weights.is_tied else 0
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.weights.tensors())

    @property
    def max_positions(self) -> int:
        """The longest sequence the model is made for, in tokens."""
        return context(self.config)

    def cache_layout(self) -> CacheLayout:
        """What the model keeps per position."""
        layout = cache_layout(self.config, self.device, self.dtype)
        return replace(layout, layers=len(self.weights.layers))

    def bind(self, cache: Tensor) -> None:
        """Use ``cache`` [layers, 2, kv_heads, rows, positions, head_dim] from now on."""
        self.cache = cache
        self._layer_caches = cache.unbind()
        self._rope_table = rope_table(self.config, cache.shape[4], self.device, self._scores)
        self._threads = 0  # graphs that read prompts know the table before
        self._fit_threads()
        self._step = step(self.weights, self._rope_table, self.eps, self.head_dim, self.group)
        if self.device.type == "cpu" and is_compiled(self.head_dim, self.dtype):
            self._compile()

    def _compile(self) -> None:
        """Run the first layer, over a cache of its own.

        It has the positions of one chunk of attention, less than which an op need not take. Where
        numba has not been asked before this takes seconds, which are then part of loading.
        """
        zeros = torch.zeros(1, dtype=torch.int64, device=self.device)
        layer, cache = self.weights.layers[0], torch.zeros_like(self.cache[0, :, :, :1, :KEYS])
        with torch.no_grad():
            x, cos, sin = self._embed(zeros.view(1, 1), zeros)
            self._layer(layer, cache, x, zeros, cos, sin)

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Logits [B, M, V], in the model's dtype, of ``tokens`` int64 [B, M].

        Token i of row b is at position ``max(start[b] + i, 0)`` of row b of the cache, where its
        key and value are written; start int64 [B]. Tokens that share position 0 must be equal.
        """
        self._fit_threads()
        batch, count = tokens.shape
        if batch * count <= self._block:
            return self._logits(tokens, start, self._layer_caches)
        return in_blocks(self._logits, tokens, start, self.cache, self._block)

    def prefill(
        self,
        tokens: Tensor,
        lengths: Sequence[int] | Tensor,
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        """Write keys and values of the prompts ``tokens[i, starts[i]:lengths[i]]``, see `Model`.

        tokens int64 [N, T]. See `prefill.py`. On a CPU where a step is one call, so is the reading
        of what is no longer than a step, in which a token's bits do not depend on the others.
        """
        self._fit_threads()
        counts = [int(length) for length in lengths]
        rows = range(len(counts)) if rows is None else rows
        starts = [0] * len(counts) if starts is None else [*starts]
        if self._step is not None:
            for i, (row, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
                if 0 < count - start <= FEW_ROWS:
                    self._fill(tokens[i : i + 1, start:count], row, start)
                    starts[i] = count
        self._prompts.read(tokens, counts, rows, starts, self.cache, self._rope_table)

    def _fill(self, tokens: Tensor, row: int, start: int) -> None:
        """Write keys and values of ``tokens`` [1, M] from position ``start`` of ``row`` on."""
        at = torch.tensor([start], dtype=torch.int64, device="cpu")
        self._step.fill(tokens, at, self.cache[:, :, :, row : row + 1].unbind())

    def read_prompts_in(self, dtype: torch.dtype) -> None:
        """Make ``dtype`` the `prompt_dtype`, on a CPU."""
        self._prompt_dtype, self._threads = dtype, 0

    def capture_prompts(self, capture: Capture | None) -> None:
        """Read short prompts by graphs that ``capture`` makes; None: by none."""
        self._capture, self._threads = capture, 0

    def prepare_prompts(self) -> None:
        """Capture those graphs now; the first prompts would do it otherwise."""
        self._fit_threads()
        self._prompts.prepare(self.cache, self._rope_table)

    def _logits(self, tokens: Tensor, start: Tensor, cache: Sequence[Tensor]) -> Tensor:
        if self._step is not None and tokens.numel() <= FEW_ROWS:
            step: Tensor = self._step(tokens, start, cache)
            return step
        x, cos, sin = self._embed(tokens, start)
        turns = rotations(self._rotates, cos, sin)
        for layer, layer_cache, (cos, sin) in zip(self.weights.layers, cache, turns, strict=True):
            x = self._layer(layer, layer_cache, x, start, cos, sin)
        weights = self.weights
        logits: Tensor = norm_linear(x, weights.norm, self.eps, *weights.head)
        batch, count = tokens.shape
        return logits[: batch * count].view(batch, count, -1)

    def _layer(
        self,
        layer: LayerWeights,
        cache: Tensor,
        x: Tensor,
        start: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """The residual stream after ``layer``, of x before it; ``cache`` is the layer's."""
        eps = self.eps
        qkv = norm_linear(x, layer.input_norm, eps, *layer.qkv)
        seen = attention(
            qkv,
            cache,
            start,
            cos,
            sin,
            layer.qk_norm,
            eps,
            layer.window,
            0.0,  # no family here caps its scores
        )
        weight, bias, scale = layer.output
        x = linear_residual(seen, weight, bias, x, scale)
        inner = norm_gated_linear(x, layer.mlp_norm, eps, *layer.gate_up)
        weight, bias, scale = layer.down
        x = linear_residual(inner, weight, bias, x, scale)
        return x

    def _embed(self, tokens: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream before the first layer, and the cosines and sines of all layers."""
        rope = self._rope_table
        if not tokens.is_cpu:
            x, cos, sin = embed(tokens, start, self.weights.embedding, rope)
            return self.weights.scaled(x), cos, sin
        count, windows = tokens.shape[1], self.windows
        cos, sin = prepare(
            start, count, rope, windows, self.group, self.batch_invariant, self.dtype
        )
        ids = tokens.reshape(-1)
        padding = -ids.shape[0] % self._tile
        if padding:
            ids = F.pad(ids, (0, padding))
        return self.weights.rows(ids), cos, sin

    def _fit_threads(self) -> None:
        """Find the row counts that keep a row's bits, anew when the number of threads has changed.

        Row counts are padded to ``_tile`` and limited to ``_block``. Those of prompts are found
        here on a CPU; on a GPU, where tensors may be fakes, with the first prompt.
        """
        threads = torch.get_num_threads()
        if self._threads == threads:
            return
        self._threads, self._tile, self._block = threads, 1, 1 << 30
        self._prompts = PromptReader(self.weights, self.eps, self._capture, self.prompt_dtype)
        if self.device.type != "cpu":
            return
        self._prompts.find_classes()
        if not is_compiled(self.head_dim, self.dtype):
            query_tile(self.head_dim, threads)  # remembered, for the first forward
        if not self.batch_invariant:
            return
        products = [*self.weights.layers[0].products, self.weights.head]
        self._tile, self._block = row_tile(products, self.dtype)
