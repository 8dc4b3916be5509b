"""Every round runs on fake CUDA tensors without waiting for them: it can be captured as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random_model
from fake_cuda import HostTouched, dry_run
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.state import State
from hybridgen.engine.steps import append
from hybridgen.kernels.uncertainty import LOGITS, PROBS
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.strategies import speculative
from hybridgen.strategies.routing import catch_up_round, llm_round, llm_rounds, slm_round
from hybridgen.strategies.single import single_round
from hybridgen.strategies.speculative import speculative_round

# A CPU build of torch cannot index fake CUDA tensors. `.ci/run` insists on a CUDA build.
pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch (no card)"
)

Round = Callable[[Any, Any], None]


def drafting(num_drafts: int, rejection: bool) -> tuple[int, Round]:
    return num_drafts, lambda state, pair: speculative_round(
        state, pair.slm, pair.llm, num_drafts, rejection
    )


def routed(metric: str, evidence: int, rate: float, count: int) -> tuple[int, Round]:
    return 0, lambda state, pair: slm_round(
        state, pair.slm, pair.llm, metric, evidence, rate, count
    )


ROUNDS: dict[str, tuple[int, Round]] = {
    **{f"rejection, K = {k}": drafting(k, True) for k in (1, 4, 8)},
    **{f"coupled or greedy, K = {k}": drafting(k, False) for k in (1, 4, 8)},
    "llm alone": (0, lambda state, pair: single_round(state, pair.llm, SOURCE_LLM, 384)),
    "slm alone": (0, lambda state, pair: single_round(state, pair.slm, SOURCE_SLM, 384)),
    "entropy": routed("entropy", PROBS, -1.0, 1),
    "entropy, running quantile": routed("entropy", PROBS, 0.2, 4),
    "uncertainty": routed("uncertainty", PROBS, -1.0, 1),
    "uncertainty, logits": routed("uncertainty", LOGITS, 0.2, 1),
    **{
        f"catch-up, {n} tokens": (0, lambda state, pair, n=n: llm_round(state, pair.llm, n))
        for n in (1, 2, 4, 8, 16)
    },
    "catch-up, first half": (0, lambda state, pair: catch_up_round(state, pair.llm, 16, 27)),
    "routed block": (0, lambda state, pair: llm_rounds(state, pair.llm, 3, 21)),
}


@pytest.fixture(scope="module")
def decoders() -> tuple[Decoder, Decoder]:
    # Vocabularies padded differently: the ids that only one model knows must not reach the other.
    slm, llm = random_model(400, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    return Decoder.from_model(slm), Decoder.from_model(llm)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_never_touches_the_host(
    decoders: tuple[Decoder, Decoder], name: str, rows: int
) -> None:
    num_drafts, round_ = ROUNDS[name]
    assert dry_run(decoders, rows, num_drafts, round_) > 0


PLANTED = {
    "item": (lambda state: state.length.max().item(), DataDependentOutputException),
    "truth": (lambda state: bool(state.done.all()), DataDependentOutputException),
    "boolean index": (lambda state: state.length[state.done], DynamicOutputShapeException),
    "nonzero": (lambda state: state.done.nonzero(), DynamicOutputShapeException),
    "copy to the host": (lambda state: state.length.cpu(), HostTouched),
    "CPU tensor": (lambda state: state.length + torch.ones(1, dtype=torch.int64), HostTouched),
    "CPU scalar": (lambda state: state.length + torch.tensor(1), HostTouched),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(
    decoders: tuple[Decoder, Decoder], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, error = PLANTED[name]

    def faulty_append(state: State, *rest: Any) -> None:
        fault(state)
        append(state, *rest)

    monkeypatch.setattr(speculative, "append", faulty_append)
    with pytest.raises(error):
        dry_run(decoders, 1, *ROUNDS["rejection, K = 4"])
