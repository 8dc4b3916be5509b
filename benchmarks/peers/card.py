"""Memory of a card that a serving engine is given, which would take nearly all of it else."""

from typing import NamedTuple

import torch

from hybridgen.benchmarks.contender import Pair, Place
from hybridgen.benchmarks.peers.base import config_of, dtype_of, folder_of, positions, stored_dtype

WORKSPACE = 4 << 30  # bytes for activations, captured graphs and the libraries' own


class Memory(NamedTuple):
    """In bytes."""

    free: int
    total: int


def memory(device: str) -> Memory:
    """Of a card now."""
    return Memory(*torch.cuda.mem_get_info(device))


def needed(pair: Pair, place: Place, most: int, with_slm: bool) -> int:
    """Bytes for the weights, ``most`` texts' keys and values, and room to work."""
    dtype = dtype_of(pair, place)
    models = [pair.llm, pair.slm] if with_slm and pair.slm is not None else [pair.llm]
    size = _itemsize(dtype)
    return WORKSPACE + sum(
        _parameters(model) * size + most * positions(pair) * _values_per_position(model) * size
        for model in models
    )


def share(wanted: int, whole: int) -> float:
    """Of the whole, at most nine tenths."""
    return round(min(0.9, wanted / whole), 3)


def _parameters(model: str) -> int:
    files = folder_of(model).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) // _itemsize(stored_dtype(config_of(model)))


def _values_per_position(model: str) -> int:
    config = config_of(model)
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * dim)


def _itemsize(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)
