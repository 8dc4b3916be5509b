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
from transformers import AutoConfig, AutoModelForCausalLM

from hybridgen.engine.adjustment import Adjustment
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.processing import adjusted
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Rows
from hybridgen.engine.steps import append
from hybridgen.kernels.uncertainty import LOGITS, PROBS
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.profiling.measuring import Kind
from hybridgen.profiling.random_router import allocate_noise, random_round
from hybridgen.strategies import drafts
from hybridgen.strategies.auto import NGRAMS, auto_round
from hybridgen.strategies.auto import catch_up_round as slm_catches_up
from hybridgen.strategies.drafts import SlmDrafts, speculative_round
from hybridgen.strategies.lookup import NgramDrafts
from hybridgen.strategies.routing import Routed, catch_up_round, llm_round, slm_round
from hybridgen.strategies.single import single_round

# A CPU build of torch cannot index fake CUDA tensors. `.ci/run` insists on a CUDA build.
pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch (no card)"
)

Step = Callable[[Batch], None]


def called(function: Callable[..., None], *static: Any) -> Step:
    return lambda batch: batch.round(function, *static)()


def drafting(num_drafts: int, rejection: bool) -> Step:
    return called(speculative_round, SlmDrafts(), num_drafts, rejection)


def recorded(step: Callable[..., None], *static: Any, by_slm: bool = True) -> Step:
    """The round as it is for a profile."""
    kind = Kind(by_slm, drafts=step in (speculative_round, auto_round, slm_catches_up))
    return lambda batch: batch.own(kind).batch.round(step, *static)()


def penalised(step: Callable[..., None], *static: Any) -> Step:
    """The round with all that a device does to logits."""
    asked = Adjustment({5: 1.0}, 1.2, no_repeat_ngram_size=3, min_new_tokens=4, ends=(0,))
    return lambda batch: adjusted(batch, asked).round(step, *static)()


def by_noise(count: int) -> Step:
    """The random router's round, whose noise is there before it is captured."""

    def step(batch: Batch) -> None:
        batch.own(allocate_noise)
        batch.round(random_round, count)()

    return step


def every_draft_count(batch: Batch) -> None:
    for num_drafts in range(1, 16):
        drafting(num_drafts, num_drafts % 2 == 0)(batch)


ROUNDS: dict[str, Step] = {
    **{f"rejection, K = {k}": drafting(k, True) for k in (1, 4, 8, 15)},
    **{f"coupled or greedy, K = {k}": drafting(k, False) for k in (1, 4, 8, 15)},
    **{f"lookup, K = {k}": called(speculative_round, NgramDrafts(), k, False) for k in (1, 8)},
    "auto, no drafts": called(auto_round, 0, None, False),
    "auto, K = 4": called(auto_round, 4, SlmDrafts(), True),
    "auto, lookup": called(auto_round, 6, NGRAMS, False),
    "auto, catch-up": called(slm_catches_up),
    "K from round to round": every_draft_count,
    "llm alone": called(single_round, SOURCE_LLM),
    "slm alone": called(single_round, SOURCE_SLM),
    "entropy": called(slm_round, "entropy", PROBS, False, 1),
    "entropy, running quantile": called(slm_round, "entropy", PROBS, True, 4),
    "uncertainty": called(slm_round, "uncertainty", PROBS, False, 1),
    "uncertainty, logits": called(slm_round, "uncertainty", LOGITS, True, 1),
    "random router": by_noise(1),
    "random router, after 4 tokens": by_noise(4),
    "recorded, rejection": recorded(speculative_round, SlmDrafts(), 4, True),
    "recorded, coupled": recorded(speculative_round, SlmDrafts(), 4, False),
    "recorded, lookup": recorded(speculative_round, NgramDrafts(), 4, False, by_slm=False),
    "recorded, auto": recorded(auto_round, 4, SlmDrafts(), False),
    "recorded, auto without drafts": recorded(auto_round, 0, None, False),
    "recorded, auto catch-up": recorded(slm_catches_up),
    "recorded, entropy": recorded(slm_round, "entropy", PROBS, False, 1),
    "recorded, uncertainty after 4 tokens": recorded(slm_round, "uncertainty", PROBS, True, 4),
    "recorded, slm alone": recorded(single_round, SOURCE_SLM),
    "recorded, llm alone": recorded(single_round, SOURCE_LLM, by_slm=False),
    "penalties, rejection": penalised(speculative_round, SlmDrafts(), 4, True),
    "penalties, lookup": penalised(speculative_round, NgramDrafts(), 4, False),
    "penalties, llm alone": penalised(single_round, SOURCE_LLM),
    "penalties, entropy": penalised(slm_round, "entropy", PROBS, True, 1),
    "penalties, catch-up": penalised(llm_round, 4),
    **{f"catch-up, {n} tokens": called(llm_round, n) for n in (1, 2, 4, 8, 16)},
    "catch-up, first half": called(catch_up_round, 16),
    "routed block": lambda batch: Routed(lambda: None, batch, 3).write(21),
}


@pytest.fixture(scope="module")
def decoders() -> tuple[Decoder, Decoder]:
    # Vocabularies padded differently: the ids that only one model knows must not reach the other.
    slm, llm = random_model(400, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    return Decoder.from_model(slm), Decoder.from_model(llm)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_never_touches_the_host(
    decoders: tuple[Decoder, Decoder], name: str, rows: int
) -> None:
    assert dry_run(decoders, rows, ROUNDS[name]) > 0


@pytest.mark.parametrize(
    "name", ["rejection, K = 4", "auto, lookup", "uncertainty", "routed block"]
)
def test_nor_do_int8_weights(name: str) -> None:
    pair = (
        Decoder.from_model(random_model(400, 1, 32, seed=1)),
        Decoder.from_model(random_model(384, 2, 64, seed=2)),
    )
    for decoder in pair:
        decoder.quantise()
    assert dry_run(pair, 2, ROUNDS[name]) > 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [("granite", {"embedding_multiplier": 12.0}), ("smollm3", {"no_rope_layers": [1, 0]})],
)
def test_nor_do_multipliers_and_layers_without_positions(
    kind: str, options: dict[str, Any]
) -> None:
    sizes = dict(vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, pad_token_id=None)
    config = AutoConfig.for_model(kind, **sizes, **heads, **options)
    llm = Decoder.from_model(AutoModelForCausalLM.from_config(config).eval())
    pair = Decoder.from_model(random_model(400, 1, 32, seed=1)), llm
    assert dry_run(pair, 2, ROUNDS["rejection, K = 4"]) > 0


PLANTED = {
    "item": (lambda rows: rows.length.max().item(), DataDependentOutputException),
    "truth": (lambda rows: bool(rows.done.all()), DataDependentOutputException),
    "boolean index": (lambda rows: rows.length[rows.done], DynamicOutputShapeException),
    "nonzero": (lambda rows: rows.done.nonzero(), DynamicOutputShapeException),
    "copy to the host": (lambda rows: rows.length.cpu(), HostTouched),
    "CPU tensor": (lambda rows: rows.length + torch.ones(1, dtype=torch.int64), HostTouched),
    "CPU scalar": (lambda rows: rows.length + torch.tensor(1), HostTouched),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(
    decoders: tuple[Decoder, Decoder], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, error = PLANTED[name]

    def faulty_append(rows: Rows, *rest: Any, **named: Any) -> None:
        fault(rows)
        append(rows, *rest, **named)

    monkeypatch.setattr(drafts, "append", faulty_append)
    with pytest.raises(error):
        dry_run(decoders, 1, ROUNDS["rejection, K = 4"])
