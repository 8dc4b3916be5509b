"""Any causal language model of transformers as a model of a pair: its own forward, our cache.

The tokens of all rows go through the model as one row of B * M tokens, with their positions beside
them: everything but attention works token by token, and attention is ours (`transformers_cache`).
So nothing is padded for a row's sake, and the number of tokens can be chosen as products want it.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from hybridgen.engine.blocks import in_blocks
from hybridgen.engine.cache import CacheLayout, round_up
from hybridgen.engine.rope import FARTHEST, context
from hybridgen.engine.rows_alone import CurvedByRows, RealRows, make_rows_alone, row_counts
from hybridgen.engine.transformers_cache import NAME, CachedLayer, Step
from hybridgen.engine.transformers_probe import Facts, copied, probe
from hybridgen.kernels.attention_plan import prepare

LOG = logging.getLogger(__name__)
HEAD_MULTIPLE = 16  # heads are padded to whole vectors
GPU_ROWS = 64  # of every product on a GPU: one shape, one kernel, one order of sums


def cache_layout(facts: Facts, device: torch.device, dtype: torch.dtype) -> CacheLayout:
    """What such a model keeps per position; float32 on CPU: attention computes in it."""
    widest = max(max(layer.key_dim, layer.value_dim) for layer in facts.layers)
    kept = torch.float32 if device.type == "cpu" else dtype
    heads = facts.layers[0].kv_heads
    return CacheLayout(len(facts.layers), heads, round_up(widest, HEAD_MULTIPLE), kept)


def max_positions(config: PretrainedConfig) -> int:
    """The longest sequence that the model is made for, in tokens.

    Where frequencies follow the length of the text (dynamic, longrope), those of short texts are
    used, and they are good up to the original context.
    """
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or FARTHEST)
    parameters: Any = getattr(text, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind == "longrope":
        original = parameters.get("original_max_position_embeddings")
        return int(original or getattr(text, "original_max_position_embeddings", longest))
    return context(text) if kind in ("linear", "yarn") else longest


class TransformersDecoder:
    """A transformers model over a bound cache; it shares the weights of ``model``.

    facts             what `probe` found; None: it is asked here
    batch_invariant   a token's logits have the same bits however many rows and tokens are computed
                      with it: see `rows_alone`

    Raises `Unfit`, a ValueError, for a model that cannot run so.
    """

    def __init__(
        self, model: PreTrainedModel, batch_invariant: bool = True, facts: Facts | None = None
    ) -> None:
        if len(places := {parameter.device for parameter in model.parameters()}) > 1:
            raise ValueError(f"all parameters must share one device, not {places}")
        self.facts = facts = facts or probe(model)
        self.config = model.config
        self.generation_config: GenerationConfig | None = getattr(model, "generation_config", None)
        self.batch_invariant = batch_invariant
        self.vocab_size = facts.vocab_size
        self.max_positions = max_positions(model.config)
        on_cpu = model.device.type == "cpu"
        self.module: Any = copied(model, NAME, "eager" if on_cpu else "grouped_mm")
        self._real = RealRows()
        self._by_rows: AbstractContextManager[Any] = nullcontext()
        self.capturable = facts.touches_host is None
        if not self.capturable:
            LOG.warning(
                "%s runs without CUDA graphs: its forward does %s",
                type(model).__name__,
                facts.touches_host,
            )
        if batch_invariant and on_cpu:
            make_rows_alone(self.module, self._real)
            if facts.is_loose:
                self._by_rows = CurvedByRows()
        self._threads = 0  # for which the row counts were found

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.module.get_input_embeddings().weight
        return weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and logits."""
        weight: Tensor = self.module.get_input_embeddings().weight
        return weight.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a forward may read whole: of the embedding it takes rows."""
        embedding, head = self.module.get_input_embeddings(), self.module.get_output_embeddings()
        tied = head is not None and head.weight is embedding.weight
        return self.nbytes if tied else self.nbytes - int(embedding.weight.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        total: int = sum(parameter.nbytes for parameter in self.module.parameters())
        return total

    def cache_layout(self) -> CacheLayout:
        """What the model keeps per position."""
        return cache_layout(self.facts, self.device, self.dtype)

    def bind(self, cache: Tensor) -> None:
        """Use ``cache`` [layers, 2, kv_heads, rows, positions, head_dim] from now on."""
        self.cache = cache
        none = torch.zeros(0, dtype=torch.float32, device=cache.device)
        self._step = Step(cache.unbind(), none, none, none)
        layers: list[Any] = [
            CachedLayer(i, shape, self._step) for i, shape in enumerate(self.facts.layers)
        ]
        self._layers = Cache(layers=layers)
        # Keys arrive rotated: a rotation by nothing.
        unrotated = torch.tensor([1.0, 0.0], dtype=torch.float32, device=cache.device).view(
            2, 1, 1, 1
        )
        self._rope = unrotated.expand(2, cache.shape[4], 1, cache.shape[5])
        if not cache.is_cpu:
            self._rope = self._rope.contiguous()
        self._windows = tuple({layer.window for layer in self.facts.layers})
        self._fit_threads()

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Logits [B, M, V] of ``tokens`` int64 [B, M], see `Model`."""
        self._fit_threads()
        batch, count = tokens.shape
        if batch * count <= self._block:
            return self._logits(tokens, start, self.cache.unbind())
        return in_blocks(self._logits, tokens, start, self.cache, self._block)

    def prefill(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        chunk: int = 128,
    ) -> None:
        """Read the prompts ``tokens[i, starts[i]:lengths[i]]`` into the cache, see `Model`.

        Prompt by prompt, in chunks of ``chunk`` tokens: the shapes depend on that prompt alone.
        """
        self._fit_threads()
        for i, (row, length) in enumerate(zip(rows or range(len(lengths)), lengths, strict=True)):
            cache = self.cache[:, :, :, row : row + 1].unbind()
            for first in range(starts[i] if starts else 0, int(length), chunk):
                part = tokens[i : i + 1, first : min(first + chunk, int(length))]
                start = torch.full((1,), first, dtype=torch.int64, device=tokens.device)
                self._run(part, start, cache, is_prompt=True)

    def _logits(self, tokens: Tensor, start: Tensor, caches: Sequence[Tensor]) -> Tensor:
        batch, count = tokens.shape
        logits = self._run(tokens, start, caches)
        return logits[0, : batch * count, : self.vocab_size].view(batch, count, -1).to(self.dtype)

    def _run(
        self,
        tokens: Tensor,
        start: Tensor,
        caches: Sequence[Tensor],
        is_prompt: bool = False,
    ) -> Tensor:
        """The model's logits of ``tokens`` as one row, padded as `_fit_threads` found.

        is_prompt   tokens of one text whose logits nobody asks for: they need not be alone
        """
        batch, count = tokens.shape
        offsets = torch.arange(count, dtype=torch.int64, device=tokens.device)
        # A round may write past the last position that the model knows; nobody reads those.
        at = (start[:, None] + offsets).clamp(0, self.max_positions - 1).view(1, -1)
        ids = tokens.reshape(1, -1)
        padding = -ids.shape[1] % self._tile
        if padding and not is_prompt:
            ids, at = F.pad(ids, (0, padding)), F.pad(at, (0, padding))
        step = self._step
        step.caches, step.start = caches, start
        self._real.count = 0 if is_prompt else batch * count
        step.cos, step.sin = self._turns(start, batch, count)
        more: dict[str, Any] = {self.facts.cache_argument: self._layers}
        if is_prompt and self.facts.last_logits_only:
            more["logits_to_keep"] = 1
        with torch.no_grad(), self._by_rows:
            output = self.module(input_ids=ids, position_ids=at, use_cache=True, **more)
        logits: Tensor = output.logits
        return logits

    def _turns(self, start: Tensor, batch: int, count: int) -> tuple[Tensor, Tensor]:
        """What attention takes for cosines and sines; on a CPU they carry its plan."""
        if not self.cache.is_cpu:
            cos, sin = self._rope[:, :1].expand(2, batch * count, 1, -1).contiguous().unbind()
            return cos, sin
        layer = self.facts.layers[0]
        group = layer.heads // layer.kv_heads
        return prepare(
            start, count, self._rope, self._windows, group, self.batch_invariant, self.dtype
        )

    def _fit_threads(self) -> None:
        """Find the row counts that keep a row's bits, anew when the number of threads changes."""
        threads = torch.get_num_threads()
        if self._threads == threads:
            return
        self._threads, self._tile, self._block = threads, 1, 1 << 30
        if not self.batch_invariant:
            return
        if self.device.type == "cpu":
            self._tile, self._block = row_counts(self.module)
        else:
            self._tile = self._block = GPU_ROWS
