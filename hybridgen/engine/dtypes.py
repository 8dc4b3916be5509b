"""Which dtype a model is fastest in where it runs, and what its matrices are kept in."""

from collections.abc import Collection

import torch
from transformers import PreTrainedModel

from hybridgen.kernels.linear import STEP, reads_plain
from hybridgen.kernels.processor import cpu_has_bfloat16

SMALL_MODEL = 2_000_000


def default_dtype(parameters: int, device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA and on CPUs that multiply it natively; float32 elsewhere.

    Below `SMALL_MODEL` parameters float32 is faster on CPU too: products are then so short that
    the conversions around them cost more than the bytes they save.
    """
    if device.type == "cuda":
        return torch.bfloat16
    if device.type != "cpu" or not cpu_has_bfloat16():
        return torch.float32
    return torch.bfloat16 if parameters > SMALL_MODEL else torch.float32


def int8_dtype(device: torch.device) -> torch.dtype:
    """What a model with int8 weights computes in: on CPU its products have a kernel in bfloat16."""
    return torch.bfloat16 if device.type == "cuda" or cpu_has_bfloat16() else torch.float32


def is_narrow(model: PreTrainedModel, stored: Collection[str]) -> bool:
    """Whether a checkpoint holds nothing but bfloat16, in matrices that compiled products take.

    stored   the dtypes in its files, as those spell them
    """
    depths = {parameter.shape[1] for parameter in model.parameters() if parameter.dim() == 2}
    return set(stored) == {"BF16"} and not any(depth % STEP for depth in depths)


def kept_dtype(computed: torch.dtype, device: torch.device) -> torch.dtype:
    """What the matrices of a checkpoint that `is_narrow` are kept in.

    Where float32 is computed in on a CPU that is bfloat16 too, if compiled products widen it as
    they read: the same numbers in half the bytes.
    """
    keeps = device.type == "cpu" and computed == torch.float32 and reads_plain(computed)
    return torch.bfloat16 if keeps else computed
