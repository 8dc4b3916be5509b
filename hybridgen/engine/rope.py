"""Rotary position tables from a transformers config.

Default, linear, llama3, yarn and dynamic scaling; the scaled frequencies are transformers' own
(`ROPE_INIT_FUNCTIONS`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hybridgen.checks import shown
from hybridgen.kernels.attention_plan import unrotated

FARTHEST = 2**31 - 1
SUPPORTED = ("default", "linear", "llama3", "yarn", "dynamic")


def head_dim(config: PretrainedConfig) -> int:
    """Elements of one head's query, key or value."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def rope_lacking(config: PretrainedConfig) -> str | None:
    """Which rotary positions of transformers' the config asks for and we lack; None for none.

    For those that nobody has, `check_rope` raises.
    """
    parameters = config.rope_parameters
    if not isinstance(parameters, dict):
        return None
    kind, part = _kind(parameters), parameters.get("partial_rotary_factor")
    if kind in ROPE_INIT_FUNCTIONS and kind not in SUPPORTED:
        return f"{config.model_type}: {_unsupported(kind)}"
    if part is not None and part != 1:
        return f"{config.model_type}: partial rotary embedding is not supported"
    return None


def rope_type(config: PretrainedConfig) -> str:
    """The config's kind of position scaling. ValueError when it is not one of `SUPPORTED`."""
    kind = _kind(config.rope_parameters)
    if kind not in SUPPORTED:
        raise ValueError(f"{config.model_type}: {_unsupported(kind)}")
    return kind


def _kind(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type", "default"))


def _unsupported(kind: str) -> str:
    return f"rope type {kind[:40]!r} is not supported, only {', '.join(SUPPORTED)}"


def context(config: PretrainedConfig) -> int:
    """The longest sequence that the model is made for, in tokens.

    Yarn and linear scaling stretch the original context by their factor, whether or not
    max_position_embeddings was raised with it; for linear, and for yarn that does not name the
    original, that is max_position_embeddings itself. Dynamic scaling starts beyond
    max_position_embeddings. With llama3 scaling original times factor is no context (Llama 3.2:
    8,192 times 32, for a context of 131,072), and max_position_embeddings says what is.
    """
    longest, kind = int(config.max_position_embeddings), rope_type(config)
    if kind not in ("linear", "yarn", "dynamic"):
        return longest
    original = longest
    if kind != "dynamic":
        original = config.rope_parameters.get("original_max_position_embeddings") or longest
    factor = float(config.rope_parameters.get("factor") or 1)
    return max(longest, int(original * factor))


def check_rope(config: PretrainedConfig) -> None:
    """Raise ValueError for position scaling that is not supported or makes no sense.

    It computes, so it has no place where tensors are fakes.
    """
    name, parameters = config.model_type, config.rope_parameters
    if not isinstance(parameters, dict):
        raise ValueError(f"{name}: rope_parameters must be a dict, got {shown(parameters)}")
    rope_type(config)
    try:
        farthest = min(context(config), FARTHEST)
        ends = torch.tensor([[1], [farthest]], dtype=torch.float32, device="cpu")
        frequencies, scaling = _frequencies(config, ends)
        finite = bool(frequencies.isfinite().all()) and math.isfinite(scaling)
    except Exception as error:  # whatever their arithmetic comes upon
        raise ValueError(
            f"{name}: rotary positions cannot be computed from rope_parameters "
            f"{shown(parameters)}: {error}"
        ) from error
    if not finite:
        raise ValueError(
            f"{name}: rotary positions are not finite with rope_parameters {shown(parameters)}"
        )


def rope_table(
    config: PretrainedConfig, positions: int, device: torch.device, scores: float = 1.0
) -> Tensor:
    """float32 [2, positions, 1, head_dim]: cosines, and sines with the first half negated.

    With them ``rotated = x * cos + roll(x, head_dim / 2) * sin``. Both carry the attention scaling
    of yarn, and the root of ``scores``, which multiplies the product of a query and a key. For
    dynamic scaling row p has the frequencies of a sequence of p + 1 tokens (at least the original
    context), so a row never depends on how a sequence was cut into chunks; beyond the original
    context this is what transformers computes one token at a time.
    """
    frequencies, scaling = _frequencies(config, _count(1, positions + 1).unsqueeze(1))
    angles, scaling = _count(0, positions).unsqueeze(1) * frequencies, scaling * scores**0.5
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    table = torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)))
    return table.unsqueeze(2).to(device)


def rotations(rotates: Sequence[bool], cos: Tensor, sin: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    """Of each layer the cosines and sines that it turns by: those given, or 1 and 0."""
    if all(rotates):
        return [(cos, sin)] * len(rotates)
    pairs = unrotated(cos, sin), (cos, sin)
    return [pairs[turned] for turned in rotates]


def _count(first: int, end: int, step: int = 1) -> Tensor:
    return torch.arange(first, end, step, dtype=torch.float32, device="cpu")


def _frequencies(config: PretrainedConfig, lengths: Tensor) -> tuple[Tensor, float]:
    """float32 [head_dim / 2] or, with dynamic scaling, one row a length; and the scaling of both.

    lengths  float32 [n, 1]. Raises ValueError where only a part of a head is rotated.
    """
    size, kind, cpu = head_dim(config), rope_type(config), torch.device("cpu")
    if kind == "default":
        exponents = _count(0, size, 2) / size
        frequencies, scaling = 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0
    elif kind == "dynamic":
        with cpu:  # transformers leaves some devices to the default
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, cpu, seq_len=lengths)
    else:
        with cpu:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, cpu)
    if 2 * frequencies.shape[-1] != size:
        raise ValueError(f"{config.model_type}: partial rotary embedding is not supported")
    return frequencies, scaling
