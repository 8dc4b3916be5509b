"""The two shapes of the pair: ordinary Qwen3 models over one vocabulary."""

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from hybridgen.pair.data import MAX_CONTEXT


def llm_config(vocab_size: int, eos_token_id: int) -> Qwen3Config:
    """The large model: 6 layers of width 384, 10.4M parameters."""
    return _config(
        vocab_size,
        eos_token_id,
        num_hidden_layers=6,
        hidden_size=384,
        intermediate_size=1024,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )


def slm_config(vocab_size: int, eos_token_id: int) -> Qwen3Config:
    """The small model: 2 layers of width 128, 0.9M parameters."""
    return _config(
        vocab_size,
        eos_token_id,
        num_hidden_layers=2,
        hidden_size=128,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )


def build(config: Qwen3Config, seed: int) -> Qwen3ForCausalLM:
    """A model with fresh weights; layers that write to the residual stream start small."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    scale = (2 * config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(scale)
    return model


def inherit_embedding(student: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM) -> None:
    """Start the student's embedding at the teacher's, projected on its leading directions.

    The embedding is two thirds of the student, and the projection keeps which tokens are alike.
    """
    with torch.no_grad():
        table = teacher.model.embed_tokens.weight.float()
        directions = torch.linalg.svd(table, full_matrices=False).Vh
        target = student.model.embed_tokens.weight
        target.copy_(table @ directions[: target.shape[1]].T)


def _config(vocab_size: int, eos_token_id: int, **shape: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocab_size,
        max_position_embeddings=MAX_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        **shape,
    )
