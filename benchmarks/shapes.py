"""Published shapes of models, as their config.json says them, and the tensors they consist of."""

from collections.abc import Iterator
from math import prod
from typing import Any

Config = dict[str, Any]

_COMMON: Config = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_QWEN3: Config = {
    **_COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "use_sliding_window": False,
}
_LLAMA: Config = {
    **_COMMON,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
_TINY: Config = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "max_position_embeddings": 4096,
}


def _sizes(width: int, depth: int, layers: int, heads: int) -> Config:
    return {
        "hidden_size": width,
        "intermediate_size": depth,
        "num_hidden_layers": layers,
        "max_window_layers": layers,
        "num_attention_heads": heads,
    }


def _llama3(factor: float) -> Config:
    """How Llama 3.1 and 3.2 stretch their positions."""
    stretched = {"high_freq_factor": 4.0, "low_freq_factor": 1.0}
    beyond = {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
    return {"factor": factor, **stretched, **beyond}


SHAPES: dict[str, Config] = {
    "qwen3-0.6b": {**_QWEN3, **_sizes(1024, 3072, 28, 16)},
    "qwen3-1.7b": {**_QWEN3, **_sizes(2048, 6144, 28, 16)},
    "qwen3-4b": {**_QWEN3, **_sizes(2560, 9728, 36, 32)},
    "qwen3-8b": {**_QWEN3, **_sizes(4096, 12288, 36, 32)},
    "llama-1b": {
        **_LLAMA,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "rope_scaling": _llama3(32.0),
    },
    "llama-8b": {
        **_LLAMA,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "rope_scaling": _llama3(8.0),
    },
    "tiny-slm": {**_QWEN3, **_TINY, **_sizes(96, 128, 1, 4)},
    "tiny-llm": {**_QWEN3, **_TINY, **_sizes(128, 256, 3, 4)},
}


def tensors(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of a checkpoint; products are [out, in]."""
    width, depth, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    yield "lm_head.weight", (config["vocab_size"], width)
    yield "model.norm.weight", (width,)
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (depth, width),
        "mlp.up_proj": (depth, width),
        "mlp.down_proj": (width, depth),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
    for index in range(config["num_hidden_layers"]):
        for name, shape in layer.items():
            yield f"model.layers.{index}.{name}.weight", shape


def parameters(config: Config) -> int:
    """How many numbers the checkpoint holds; those of the head count beside the embedding's."""
    return sum(prod(shape) for _, shape in tensors(config))
