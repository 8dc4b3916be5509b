"""The device and the dtype that a generator is asked for."""

from typing import Any

import torch

from hybridgen.checks import shown

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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
