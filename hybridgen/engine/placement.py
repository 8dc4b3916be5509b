"""Where a model is, or will be: whole, on one device; and what a caller may ask for."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hybridgen.checks import shown

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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


def bytes_as_int8(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> int:
    """`bytes_to_load` of a native model whose products are to have int8 weights.

    They are copies: beside those of a loaded model, and apart from an embedding that is the head.
    """
    module: Any = model
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    products = {id(p): p for p in model.parameters() if p.dim() == 2 and p is not embedding}
    products[id(head)] = head
    copies: int = sum(p.numel() + torch.float32.itemsize * len(p) for p in products.values())
    if not head.is_meta:
        return bytes_to_load(model, device, dtype) + copies
    others: int = sum(p.numel() for p in model.parameters() if p.dim() == 1) + embedding.numel()
    return copies + others * dtype.itemsize


def choose_device(device: Any) -> torch.device:
    """``device``, or cuda where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accepted = "cpu, cuda, or cuda with an index such as 'cuda:1'"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"device must be {accepted}, got {shown(device)}") from error
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cpu" and chosen.index):
        raise ValueError(f"device must be {accepted}, got {shown(device)}")
    if chosen.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= count:
        raise ValueError(f"device is {shown(device)}, but torch sees {count} CUDA devices")
    return chosen


def choose_dtype(dtype: Any) -> torch.dtype | None:
    """``dtype`` as a torch dtype; None lets each model take the fastest."""
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen is None or (isinstance(chosen, torch.dtype) and chosen in DTYPES.values()):
        return chosen
    raise ValueError(f"dtype must be {', '.join(DTYPES)} or None, got {shown(dtype)}")
