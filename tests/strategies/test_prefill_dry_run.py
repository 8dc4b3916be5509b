"""Prompts are read on fake CUDA tensors without waiting for them, and no op touches the host."""

from collections.abc import Callable

import pytest
import torch
from conftest import random_model
from fake_cuda import HostGuard, fake_decoder
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridgen.engine import prefill
from hybridgen.engine.decoder import Decoder

# A CPU build of torch cannot index fake CUDA tensors. `.ci/run` insists on a CUDA build.
pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch (no card)"
)


def as_it_is(work: Callable[[], None]) -> Callable[[], None]:
    """In the place of `Graphs.record`."""
    work()
    return work


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("lengths", [[5], [300, 1, 20, 259], [0, 511]])
def test_prompts_are_read_without_the_host(
    lengths: list[int], int8: bool, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fakes have no bits to compare.
    monkeypatch.setattr(prefill, "size_classes", lambda products, sizes, dtype: [sizes])
    decoder = Decoder.from_model(random_model(384, 2, 64, seed=2))
    if int8:
        decoder.quantise()
    with FakeTensorMode(), torch.inference_mode():
        fake = fake_decoder(decoder, 4)
        tokens = torch.empty(len(lengths), 511, dtype=torch.int64, device="cuda")
        if captured:
            fake.capture_prompts(as_it_is)
        with HostGuard() as guard:
            fake.prefill(tokens, lengths)
    assert guard.allocated > 0
