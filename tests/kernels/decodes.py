"""What a decode asks of the ops: the rounds of the strategies, on the shapes of known models.

`decode` runs them on tensors without memory (fake or meta), with as many layers as differ: one.
"""

from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from hybridgen.engine import prefill
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts, Memory, Routing, Rows
from hybridgen.engine.steps import feed
from hybridgen.kernels.attention import attention
from hybridgen.kernels.layers import normalize
from hybridgen.kernels.linear import linear_residual, norm_gated_linear, norm_linear
from hybridgen.kernels.penalties import penalize
from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import filter_logits
from hybridgen.kernels.uncertainty import LOGITS, PROBS, entropy, logtoku, sample_measured
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.pair import LLM_PATH, SLM_PATH
from hybridgen.strategies.drafts import SlmDrafts, speculative_round
from hybridgen.strategies.lookup import NgramDrafts
from hybridgen.strategies.routing import catch_up_round, llm_round, slm_round
from hybridgen.strategies.single import single_round

POSITIONS = 4096
NUM_DRAFTS = 4
PROMPT = 600  # tokens: a whole piece of the prefill, and the rest


class Shape(NamedTuple):
    """The numbers of a published config; queries and keys are normalised in qwen3, and the QKV
    product has a bias in qwen2."""

    config: type[PretrainedConfig]
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    tied: bool


SHAPES = {
    "Qwen3-1.7B": Shape(Qwen3Config, 2048, 6144, 16, 8, 128, 28, 151936, True),
    "Qwen3-8B": Shape(Qwen3Config, 4096, 12288, 32, 8, 128, 36, 151936, False),
    "Llama-3.2-1B": Shape(LlamaConfig, 2048, 8192, 32, 8, 64, 16, 128256, True),
    "Llama-3.1-8B": Shape(LlamaConfig, 4096, 14336, 32, 8, 128, 32, 128256, False),
    "Qwen2.5-0.5B": Shape(Qwen2Config, 896, 4864, 14, 2, 64, 24, 151936, True),
    "Qwen2.5-7B": Shape(Qwen2Config, 3584, 18944, 28, 4, 128, 28, 152064, False),
}
PAIRS = {
    "embedded": (SLM_PATH, LLM_PATH),
    "Qwen3": ("Qwen3-1.7B", "Qwen3-8B"),
    "Llama-3": ("Llama-3.2-1B", "Llama-3.1-8B"),
    "Qwen2.5": ("Qwen2.5-0.5B", "Qwen2.5-7B"),
}
BATCHES = (1, 4, 32)


def config(model: Any) -> PretrainedConfig:
    """The config of a checkpoint folder or of an entry of `SHAPES`, cut to one layer."""
    if model not in SHAPES:
        return AutoConfig.from_pretrained(model, num_hidden_layers=1)
    shape = SHAPES[model]
    return shape.config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        num_hidden_layers=1,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
    )


def decoder(model: Any, rows: int, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A decoder, its weights and cache uninitialised."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config(model), dtype=dtype)
    fused = Decoder.from_model(empty)

    def allocate(tensor: Tensor) -> Tensor:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=device)

    made = Decoder(fused.config, fused.weights.map(allocate))
    layout = made.cache_layout()
    shape = (layout.layers, 2, layout.kv_heads, rows, POSITIONS, layout.head_dim)
    made.bind(torch.empty(shape, dtype=layout.dtype, device=device))
    return made


def decode(pair: str, rows: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    """The prefill, one of each round of each strategy, and the ops that no round calls."""
    slm, llm = (decoder(model, rows, device, dtype) for model in PAIRS[pair])
    memory, shared = Memory(device), min(slm.vocab_size, llm.vocab_size)
    batch = Batch(
        slm,
        llm,
        Rows.allocate(memory, rows, POSITIONS, llm.vocab_size),
        Drafts.allocate(memory, rows, NUM_DRAFTS, shared, slm.dtype),
        Routing.allocate(memory, rows),
    )
    prompt = torch.empty(1, PROMPT, dtype=torch.int64, device=device)
    # Fakes have no bits to compare.
    with patch.object(prefill, "size_classes", lambda products, sizes, dtype: [(sizes[-1],)]):
        for model in (slm, llm):
            model.prefill(prompt, [PROMPT])
    for rejection in (True, False):
        speculative_round(batch, SlmDrafts(), NUM_DRAFTS, rejection)
    speculative_round(batch, NgramDrafts(), NUM_DRAFTS, False)
    for source in (SOURCE_LLM, SOURCE_SLM):
        single_round(batch, source)
    for metric, evidence in (("entropy", PROBS), ("uncertainty", PROBS), ("uncertainty", LOGITS)):
        slm_round(batch, metric, evidence, False, 1)
    slm_round(batch, "entropy", PROBS, True, NUM_DRAFTS)
    feed(batch.rows, slm, 16, batch.rows.length)
    catch_up_round(batch, 16)
    for count in (1, 2, 4, 8, 16):
        llm_round(batch, count)
    texts = batch.rows
    whole = llm(texts.tokens[:, :1], texts.length)
    penalties(whole, texts)
    penalties(whole[..., :shared], texts)
    logits = whole[:, -1]
    filter_logits(logits, texts.sampling)
    sample_measured(logits, texts.sampling, texts.seed, texts.length, TARGET, 10, PROBS)
    entropy(logits, batch.routing.threshold)
    for model in (slm, llm):
        norm = model.weights.norm
        normalize(torch.empty(8, len(norm), dtype=dtype, device=device), norm, 1e-6)
    for evidence in (PROBS, LOGITS):
        logtoku(logits, 10, evidence)


def penalties(logits: Tensor, texts: Rows) -> None:
    """Both of them, as tensors of their own would give their parameters."""
    rows, vocab = len(logits), logits.shape[2]
    bias = torch.empty(vocab, dtype=torch.float32, device=logits.device)
    padding = torch.empty(rows, 3, dtype=torch.int64, device=logits.device)
    given = logits, texts.tokens, texts.length, padding, bias, bias, texts.length
    penalize(*given, bias[:1], padding[0, :1])


def every_decode() -> None:
    """Those of all pairs and batches on fake CUDA tensors, of other dtypes, and what is unusual."""
    device, others = torch.device("cuda"), (torch.float32, torch.float16)
    for pair in PAIRS:
        for rows in BATCHES:
            decode(pair, rows, device)
    for dtype in others:
        decode("embedded", 1, device, dtype)
        decode("Qwen3", 4, device, dtype)
    for model in SHAPES:
        for rows in (1, 32):
            int8_products(model, rows, device, torch.bfloat16)
    for dtype in (torch.bfloat16, *others):
        int8_products("Qwen3-1.7B", 1, device, dtype)
        unusual(device, dtype)


def int8_products(model: str, rows: int, device: torch.device, dtype: torch.dtype) -> None:
    """Those of a layer, and the head's."""
    shape = SHAPES[model]
    queries, hidden = shape.heads * shape.head_dim, shape.hidden

    def empty(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device=device)

    def int8(outputs: int, depth: int) -> tuple[Tensor, Tensor]:
        return empty(outputs, depth, kind=torch.int8), empty(outputs, kind=torch.float32)

    x, norm = empty(rows, hidden), empty(hidden)
    weight, scale = int8(queries + 2 * shape.kv_heads * shape.head_dim, hidden)
    bias = empty(len(weight)) if shape.config is Qwen2Config else None
    norm_linear(x, norm, 1e-6, weight, bias, scale)
    weight, scale = int8(shape.vocab, hidden)
    norm_linear(x, norm, 1e-6, weight, None, scale)
    weight, scale = int8(2 * shape.intermediate, hidden)
    norm_gated_linear(x, norm, 1e-6, weight, None, scale)
    for depth in (queries, shape.intermediate):
        weight, scale = int8(hidden, depth)
        linear_residual(empty(rows, depth), weight, None, x, scale)


def unusual(device: torch.device, dtype: torch.dtype) -> None:
    """Shapes of none of the models above that are hard to fit into registers.

    A depth that 16 does not divide, and attention with soft-capped scores over heads of 256, as in
    gemma2.
    """

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device=device)

    depth, columns, positions, dim = 1000, 6144, 4096, 256
    x, norm, weight = empty(20, depth), empty(depth), empty(2 * columns, depth)
    norm_linear(x, norm, 1e-6, weight, None)
    norm_gated_linear(x, norm, 1e-6, weight, None)
    linear_residual(x, weight, None, empty(20, 2 * columns))
    q, scale = empty(2 * columns, depth, kind=torch.int8), empty(2 * columns, kind=torch.float32)
    norm_linear(x, norm, 1e-6, q, None, scale)
    norm_gated_linear(x, norm, 1e-6, q, None, scale)
    linear_residual(x, q, None, empty(20, 2 * columns), scale)
    angles = empty(5, 1, dim, kind=torch.float32)
    start = empty(1, kind=torch.int64)
    cache = empty(2, 4, 1, positions, dim)
    attention(empty(5, 16 * dim), cache, start, angles, angles, None, 1e-6, 0, 50.0)
