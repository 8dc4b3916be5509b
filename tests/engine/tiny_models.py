"""Random models of every native family, small enough to build by the dozen."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    CwmConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
)

from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder

CONFIGS = {
    "cwm": CwmConfig,
    "granite": GraniteConfig,
    "llama": LlamaConfig,
    "ministral": MinistralConfig,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "seed_oss": SeedOssConfig,
    "smollm3": SmolLM3Config,
}
THETA = {"rope_type": "default", "rope_theta": 1e4}
# Positions for every layer and for some, and no window; those of cwm and ministral are wide.
OPTIONS: dict[str, dict[str, Any]] = {
    "cwm": {"bos_token_id": 0, "eos_token_id": 1, "rope_parameters": THETA},
    "granite": {
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "logits_scaling": 3.0,
        "rms_norm_eps": 0.05,
    },
    "mistral": {"sliding_window": None},
    "smollm3": {"no_rope_layers": [1, 0]},
}
VOCAB = 96


def random_model(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """A model whose every weight matters: norms are not 1 and biases are not 0."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    settings |= OPTIONS.get(kind, {}) | options
    model = Auto.from_config(CONFIGS[kind](**settings), attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = 0.3 * torch.randn_like(parameter)
                parameter.copy_(noise + 1 if "norm" in name else noise)
    return model.to(dtype).eval()


def bound(model: PreTrainedModel, rows: int = 1, positions: int = 256, **options: Any) -> Decoder:
    """A decoder over ``model`` with a cache of its own."""
    decoder = Decoder.from_model(model, **options)
    decoder.bind(Arena([decoder.cache_layout()], rows, positions, "cpu").caches[0])
    return decoder


def random_tokens(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (rows, count), generator=generator)


@torch.no_grad()
def reference_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """transformers' logits of whole sequences, float32 or the model's dtype."""
    return model(tokens).logits


def at(*starts: int) -> torch.Tensor:
    return torch.tensor(starts)
