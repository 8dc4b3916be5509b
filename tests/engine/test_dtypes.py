"""The dtype that a model is fastest in."""

import pytest
import torch

from hybridgen.engine import dtypes
from hybridgen.engine.dtypes import SMALL_MODEL, cpu_has_bfloat16, default_dtype

CPU = torch.device("cpu")


def test_default_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = SMALL_MODEL, SMALL_MODEL + 1
    for native, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda native=native: native)
        assert default_dtype(large, CPU) == wanted
        assert default_dtype(small, CPU) == torch.float32
    assert default_dtype(small, torch.device("cuda")) == torch.bfloat16


def test_the_processor_is_asked_even_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cpu_has_bfloat16(), bool)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert isinstance(cpu_has_bfloat16.__wrapped__(), bool)
