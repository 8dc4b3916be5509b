"""Logits as a model's, and the numbers of the models whose shapes are measured."""

from typing import NamedTuple

import torch
from torch import Tensor

VOCAB = 151936  # Qwen3


class Model(NamedTuple):
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int


MODELS = {
    "embedded LLM": Model(256, 768, 4, 2, 64),
    "Qwen3-1.7B": Model(2048, 6144, 16, 8, 128),
    "Qwen3-8B": Model(4096, 12288, 32, 8, 128),
}


def language_logits(seed: int, *shape: int, device: torch.device) -> Tensor:
    """bfloat16 [*shape, V]: probabilities fall with the rank to the power of 1.3, as in text.

    With normal logits a nucleus would hold most of the vocabulary, which no trained model shows.
    """
    generator = torch.Generator(device).manual_seed(seed)
    noise = torch.rand(shape, generator=generator, device=device)
    rank = noise.argsort(-1) + 1
    return (20 - 1.3 * rank.float().log() + noise).bfloat16()


def normal(seed: int, *shape: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
