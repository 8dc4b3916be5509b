"""The dtype that a model is fastest in."""

import itertools

import pytest
import torch

from hybridgen.engine import dtypes
from hybridgen.engine.dtypes import (
    SMALL_MODEL,
    cpu_has_bfloat16,
    default_dtype,
    prompt_dtype,
)

CPU = torch.device("cpu")


def test_default_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 where it is native, unless compiled products read narrow weights in float32 too."""
    small, large = SMALL_MODEL, SMALL_MODEL + 1
    for native, compiled, narrow in itertools.product((True, False), repeat=3):
        monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda native=native: native)
        monkeypatch.setattr(dtypes, "reads_plain", lambda dtype, compiled=compiled: compiled)
        wide = not native or (compiled and narrow)
        assert default_dtype(large, CPU, narrow) == (torch.float32 if wide else torch.bfloat16)
        assert default_dtype(small, CPU, narrow) == torch.float32
        assert default_dtype(small, torch.device("cuda"), narrow) == torch.bfloat16
        of_prompts = torch.bfloat16 if native and narrow else torch.float32
        assert prompt_dtype(torch.float32, CPU, narrow) == of_prompts
        assert prompt_dtype(torch.float16, torch.device("cuda"), narrow) == torch.float16


def test_the_processor_is_asked_even_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cpu_has_bfloat16(), bool)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert isinstance(cpu_has_bfloat16.__wrapped__(), bool)
