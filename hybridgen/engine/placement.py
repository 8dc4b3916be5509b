"""Where a transformers model is, or will be: whole, on one device."""

from typing import Any

import torch
from transformers import PreTrainedModel


def check_whole(model: PreTrainedModel) -> None:
    """Raise ValueError for a loaded model that is spread over devices, or not all in memory."""
    mapped = getattr(model, "hf_device_map", None) or {}
    places = {_name(place) for place in mapped.values()}
    if len(places) < 2 and "disk" not in places:
        places = {str(parameter.device) for parameter in model.parameters()}
        if len(places) < 2:
            return
    raise ValueError(
        f"it is spread over {', '.join(sorted(places))}: load it without a device_map, or with "
        "one that puts all of it on one device, as device_map={'': 0}. The SLM and the LLM may be "
        "on two different cards"
    )


def _name(place: Any) -> str:
    """Of a device, of a CUDA device's number, or "disk"."""
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def final_device(model: PreTrainedModel, asked: torch.device) -> torch.device:
    """Where ``model`` will be when ``asked`` is where it is to run: "cuda" leaves it on its card.

    A model on the meta device is a checkpoint's, yet to be loaded.
    """
    current = next(model.parameters()).device
    return current if asked.index is None and current.type == asked.type else asked


def bytes_to_load(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> int:
    """What ``model`` will take of ``device`` beyond what it takes now, at least.

    Tied weights count once, though a head that is packed for a CPU is a copy.
    """
    parameters = list(model.parameters())
    if parameters[0].device == final_device(model, device):
        return 0
    return sum(parameter.numel() for parameter in parameters) * dtype.itemsize
