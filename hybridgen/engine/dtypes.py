"""Which dtype a model is fastest in where it runs, and what its matrices are kept in."""

from collections.abc import Collection

import torch
from transformers import PreTrainedModel

from hybridgen.kernels.linear import STEP, reads_plain
from hybridgen.kernels.processor import cpu_has_bfloat16

SMALL_MODEL = 2_000_000


def default_dtype(parameters: int, device: torch.device, narrow: bool) -> torch.dtype:
    """bfloat16 on CUDA and on CPUs that multiply it natively; float32 elsewhere.

    narrow   whether weights of bfloat16, or int8 ones, can be kept as they are in float32 too

    Such weights compiled products widen as they read, and a step is one call: on a CPU float32 then
    costs no more bytes, and a step of SmolLM2 takes two thirds of its time in bfloat16. Below
    `SMALL_MODEL` parameters float32 is faster anyway: products are then so short that the
    conversions around them cost more than the bytes they save.
    """
    if device.type == "cuda":
        return torch.bfloat16
    if device.type != "cpu" or not cpu_has_bfloat16():
        return torch.float32
    wide = parameters <= SMALL_MODEL or (narrow and reads_plain(torch.float32))
    return torch.float32 if wide else torch.bfloat16


def int8_dtype(model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """What a model with int8 weights computes in by default."""
    return default_dtype(SMALL_MODEL + 1, device, _fits(model))


def prompt_dtype(computed: torch.dtype, device: torch.device, narrow: bool) -> torch.dtype:
    """What a model that computes in ``computed`` by default has the products of prompts in.

    Those of many rows are bound by arithmetic, of which a CPU with bfloat16 does several times as
    much in it: 2,000 tokens of SmolLM2 take half the time.
    """
    native = device.type == "cpu" and narrow and cpu_has_bfloat16()
    return torch.bfloat16 if native else computed


def is_narrow(model: PreTrainedModel, stored: Collection[str]) -> bool:
    """Whether a checkpoint holds nothing but bfloat16, in matrices that compiled products take.

    stored   the dtypes in its files, as those spell them
    """
    return set(stored) == {"BF16"} and _fits(model)


def _fits(model: PreTrainedModel) -> bool:
    depths = {parameter.shape[1] for parameter in model.parameters() if parameter.dim() == 2}
    return not any(depth % STEP for depth in depths)


def kept_dtype(computed: torch.dtype, device: torch.device) -> torch.dtype:
    """What the matrices of a checkpoint that `is_narrow` are kept in.

    Where float32 is computed in on a CPU that is bfloat16 too, if compiled products widen it as
    they read: the same numbers in half the bytes.
    """
    keeps = device.type == "cpu" and computed == torch.float32 and reads_plain(computed)
    return torch.bfloat16 if keeps else computed
