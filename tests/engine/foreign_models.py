"""Small random models of families that have no native decoder."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hybridgen.engine.cache import Arena
from hybridgen.engine.transformers_decoder import TransformersDecoder

WINDOW = 7
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 80}
# What differs between the kinds: windows, soft caps, scales, absolute and partial positions, norms
# before and after, products fused or transposed, experts, tied heads.
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 24,
    },
    "stablelm": {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "cohere": {"logit_scale": 0.5},
    "gpt2": GPT2,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 40,
    },
    "cohere2": {
        "logit_scale": 1.0,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "starcoder2": {"sliding_window": WINDOW},
    "gpt_neox": {},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
}


def foreign_model(kind: str, **options: Any) -> PreTrainedModel:
    """A float32 model whose every weight matters."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=96,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    if kind != "gpt2":
        settings |= dict(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        if kind.startswith("gemma"):
            settings["head_dim"] = 12
    config = AutoConfig.for_model(kind, **{**settings, **KINDS.get(kind, {}), **options})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() == 1:
                one = "norm" in name or "ln_" in name
                parameter.copy_(0.3 * noise + one)
            else:
                parameter.copy_(0.15 * noise)
    return model.float().eval()


def bound_foreign(
    model: PreTrainedModel, rows: int = 1, positions: int = 256, **options: Any
) -> TransformersDecoder:
    """A decoder over ``model`` with a cache of its own."""
    decoder = TransformersDecoder(model, **options)
    decoder.bind(Arena([decoder.cache_layout()], rows, positions, "cpu").caches[0])
    return decoder
