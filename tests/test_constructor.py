"""What the constructor refuses, it refuses before it reads weights."""

from typing import Any

import numpy as np
import pytest
import torch
from bad_values import CONSTRUCTOR
from conftest import TinyPair, random_model

from hybridgen import HybridGenerator
from hybridgen.engine.loading import Found


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Found, *place: Any, **options: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Found, "load", load)


def make(pair: TinyPair, **changes: Any) -> HybridGenerator:
    options = {"slm_model_id": pair.slm, "llm_model_id": pair.llm, "device": "cpu"}
    return HybridGenerator(**{**options, **changes})


@pytest.mark.parametrize(("name", "value", "error"), CONSTRUCTOR, ids=lambda value: str(value)[:20])
def test_arguments_that_are_refused_before_anything_is_loaded(
    unloaded: None, tiny_pair: TinyPair, name: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^{name}\b") as caught:
        make(tiny_pair, **{name: value})
    assert len(str(caught.value)) < 1000


def test_a_model_is_checked_even_where_a_tokenizer_is_given(
    unloaded: None, tiny_pair: TinyPair, tiny_tokenizer: Any
) -> None:
    with pytest.raises(TypeError, match=r"^llm_model_id must be a hub id, a local folder or"):
        make(tiny_pair, llm_model_id=torch.nn.Linear(2, 2), tokenizer=tiny_tokenizer)


@pytest.mark.parametrize("name", ["slm_model_id", "llm_model_id"])
def test_both_models_are_checked_before_either_is_loaded(
    unloaded: None, tiny_pair: TinyPair, name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: cannot load '/no/such/folder'"):
        make(tiny_pair, **{name: "/no/such/folder"})


@pytest.mark.parametrize("options", [{"max_batch_size": 10**9}, {"max_batch_size": 2**31 - 1}])
def test_a_cache_that_cannot_fit_is_refused_before_anything_is_loaded(
    unloaded: None, tiny_pair: TinyPair, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"need [\d,]+ bytes.*lower max_batch_size"):
        make(tiny_pair, **options)


def test_a_context_that_cannot_be_had_is_refused(unloaded: None, tiny_pair: TinyPair) -> None:
    with pytest.raises(ValueError, match=r"^max_seq_len must be at most 256, .* got 257"):
        make(tiny_pair, max_seq_len=257)


def test_the_context_is_the_models_or_what_is_asked_for(tiny_pair: TinyPair) -> None:
    assert make(tiny_pair).pair.positions == 256
    assert make(tiny_pair, max_seq_len=256).pair.positions == 256
    assert make(tiny_pair, max_seq_len=100).pair.positions == 100


def test_a_context_that_scaling_stretches_is_had(tiny_pair: TinyPair, tiny_tokenizer: Any) -> None:
    """As Qwen's model cards have it: yarn is added, max_position_embeddings is left alone."""
    models = [random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)]
    for model in models:
        model.config.rope_parameters = {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    generator = HybridGenerator(
        *models, tokenizer=tiny_tokenizer, device="cpu", max_seq_len=1024, max_batch_size=1
    )
    prompt = [7, 8, 9, 10] * 100
    result = generator.generate(prompt, max_new_tokens=8, ignore_eos=True, print_stats=False)
    assert len(result.tokens) == 8


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_names_of_the_cpu(tiny_pair: TinyPair, device: Any) -> None:
    assert make(tiny_pair, device=device).device == torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_names_of_a_dtype(tiny_pair: TinyPair, dtype: Any) -> None:
    assert make(tiny_pair, dtype=dtype).llm.dtype == torch.float32


def test_eos_ids_of_any_sequence_are_read(tiny_pair: TinyPair) -> None:
    generator = make(tiny_pair)
    config = generator.llm.generation_config
    assert config is not None
    free = generator.generate([7, 8], seed=1, ignore_eos=True, print_stats=False).tokens
    for ids in (free[3], [free[3]], (free[3], 5), np.array([free[3]])[0]):
        config.eos_token_id = ids
        result = generator.generate([7, 8], seed=1, print_stats=False)
        assert result.tokens == free[: free.index(free[3]) + 1]
