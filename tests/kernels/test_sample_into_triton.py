"""`sample_into`: what `sample` draws, written where it is asked for, and nothing beside."""

import pytest
import torch
from on_device import bits
from sampling_cases import params_of

from hybridgen.kernels.philox import DRAFT
from hybridgen.kernels.sampling import sample, sample_into

pytestmark = pytest.mark.usefixtures("references")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [100, 3001])
def test_into_given_places_it_draws_the_same(
    device: torch.device, dtype: torch.dtype, vocab: int
) -> None:
    """And writes nothing beside them; rows that are closed and open, and a broken one."""
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[3, 7] = float("nan")
    sampling = params_of(
        (0.7, 20, 0.9, 0.0), (1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 5, 1, 0)
    )
    given = logits, sampling, torch.arange(4), torch.arange(4) + 9, DRAFT
    expected = sample(*given)
    for op, place in (
        (sample_into.reference, torch.device("cpu")),
        (sample_into.launcher(), device),
    ):
        for keeps in (True, False):
            token = torch.full((4, 3), -7, device=place)
            truncation = torch.full((4, 3, 3), -7.0, device=place)
            kept = torch.full((4, 2, vocab), -7, dtype=dtype, device=place)
            moved = [x.to(place) if isinstance(x, torch.Tensor) else x for x in given]
            op(*moved, token[:, 1], truncation[:, 1], kept[:, 0] if keeps else None)
            assert torch.equal(token[:, 1].cpu(), expected[0])
            assert torch.equal(bits(truncation[:, 1].cpu()), bits(expected[1]))
            assert bool((token[:, ::2] == -7).all() and (truncation[:, ::2] == -7).all())
            assert bool((kept[:, 1] == -7).all())
            assert torch.equal(bits(kept[:, 0].cpu()), bits(logits)) or not keeps
