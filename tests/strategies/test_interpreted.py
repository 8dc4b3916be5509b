"""Whole strategies on the Triton kernels, interpreted: the text is that of the CPU's own ops.

Eagerly, and as on a GPU: captured, replayed and one round ahead (see `fake_graph`).
"""

from typing import Any

import pytest
import torch
from conftest import random_model
from fake_graph import as_on_a_gpu
from transformers import PreTrainedTokenizerFast

from hybridgen import HybridGenerator
from hybridgen.engine import decoder
from hybridgen.kernels.registry import Op

SAMPLED = {"temperature": 0.8, "top_k": 30, "top_p": 0.95, "seed": 5}
QUIET = {"max_new_tokens": 2, "num_drafts": 2, "print_stats": False}


def made(tiny_tokenizer: PreTrainedTokenizerFast, rows: int = 2) -> HybridGenerator:
    # Loaded models keep plain weights, which Triton can read.
    size = len(tiny_tokenizer)
    models = random_model(size, 1, 32, seed=1), random_model(size, 2, 32, seed=2)
    options = {"device": "cpu", "dtype": torch.float32, "max_seq_len": 256, "max_batch_size": rows}
    return HybridGenerator(*models, tokenizer=tiny_tokenizer, **options)


@pytest.fixture(scope="module")
def generator(tiny_tokenizer: PreTrainedTokenizerFast) -> HybridGenerator:
    return made(tiny_tokenizer)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Until the patch is undone every op takes its Triton launcher, on CPU tensors too, and a step
    is made of ops; the names of those that ran."""
    ran: set[str] = set()

    def launch(op: Op, *arguments: Any) -> Any:
        ran.add(op.name)
        return op.launcher()(*arguments)

    monkeypatch.setattr(Op, "__call__", launch)
    monkeypatch.setattr(decoder, "FEW_ROWS", 0)
    return ran


FORWARD = {"norm_linear", "attention", "linear_residual", "norm_gated_linear"}
FORWARD |= {"rms_norm", "cache_write"}  # of the prompt
EVERY = FORWARD | {"window", "commit"}
REQUESTS = {
    "greedy": ({"strategy": "speculative", "temperature": 0}, {"sample_into", "verify_coupled"}),
    "rejection": ({"strategy": "speculative", **SAMPLED}, {"sample_into", "verify_rejection"}),
    "uncertainty": (
        {"strategy": "uncertainty", "threshold": 0.0, **SAMPLED},
        {"sample", "sample_measured", "route", "unread"},
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_text_is_that_of_the_references(
    generator: HybridGenerator, name: str, launched: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, ops = REQUESTS[name]
    result = generator.generate("def area", **request, **QUIET)
    assert launched == EVERY | ops
    monkeypatch.undo()
    launched.clear()
    assert generator.generate("def area", **request, **QUIET).tokens == result.tokens
    assert not launched


def test_coupled_text_is_the_llms_own(generator: HybridGenerator, launched: set[str]) -> None:
    coupled = {"verification": "coupled", **SAMPLED, **QUIET}
    alone = generator.generate("def area", strategy="llm", **SAMPLED, **QUIET)
    assert generator.generate("def area", **coupled).tokens == alone.tokens
    assert launched == EVERY | {"sample", "sample_into", "verify_coupled"}


@pytest.mark.parametrize("name", ["rejection", "uncertainty"])
def test_replays_write_it_too(
    generator: HybridGenerator,
    tiny_tokenizer: PreTrainedTokenizerFast,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    launched: set[str],
) -> None:
    """Two prompts in one row: what the first captured writes the second too."""
    request, ops = REQUESTS[name]
    prompts, captured = ["def area", "x"], made(tiny_tokenizer, rows=1)
    graphs = as_on_a_gpu(captured.pair)
    result = captured.generate(prompts, **request, **QUIET)
    assert graphs.replays > 3
    assert launched == EVERY | ops
    monkeypatch.undo()
    launched.clear()
    assert generator.generate(prompts, **request, **QUIET).tokens == result.tokens
    assert not launched
