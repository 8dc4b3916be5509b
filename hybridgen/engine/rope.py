"""Rotary position tables from a transformers config.

Default, linear, llama3, yarn and dynamic scaling; the scaled frequencies are transformers' own
(`ROPE_INIT_FUNCTIONS`).
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SUPPORTED = ("default", "linear", "llama3", "yarn", "dynamic")


def rope_type(config: PretrainedConfig) -> str:
    """The config's kind of position scaling. ValueError when it is not one of `SUPPORTED`."""
    kind = str(config.rope_parameters.get("rope_type", "default"))
    if kind not in SUPPORTED:
        raise ValueError(
            f"{config.model_type}: rope type {kind!r} is not supported, only {', '.join(SUPPORTED)}"
        )
    return kind


def rope_table(config: PretrainedConfig, positions: int, device: torch.device) -> Tensor:
    """float32 [2, positions, 1, head_dim]: cosines, and sines with the first half negated.

    With them ``rotated = x * cos + roll(x, head_dim / 2) * sin``. Both carry the attention scaling
    of yarn. For dynamic scaling row p has the frequencies of a sequence of p + 1 tokens (at least
    the original context), so a row never depends on how a sequence was cut into chunks; beyond the
    original context this is what transformers computes one token at a time.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kind = rope_type(config)
    cpu = torch.device("cpu")

    def count(first: int, end: int, step: int = 1) -> Tensor:
        return torch.arange(first, end, step, dtype=torch.float32, device=cpu)

    if kind == "default":
        exponents = count(0, head_dim, 2) / head_dim
        frequencies, scaling = 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0
    elif kind == "dynamic":
        lengths = count(1, positions + 1).unsqueeze(1)
        with cpu:  # transformers leaves some devices to the default
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, cpu, seq_len=lengths)
    else:
        with cpu:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, cpu)
    if 2 * frequencies.shape[-1] != head_dim:
        raise ValueError(f"{config.model_type}: partial rotary embedding is not supported")
    angles = count(0, positions).unsqueeze(1) * frequencies
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    table = torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)))
    return table.unsqueeze(2).to(device)
