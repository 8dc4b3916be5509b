"""The shipped pair: what users and the other tests rely on."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hybridgen.pair import LLM_PATH, SLM_PATH, card
from hybridgen.pair.recipe import SAMPLING

FOLDER = LLM_PATH.parent
PATHS = [SLM_PATH, LLM_PATH]
MAX_BYTES = 16 * 1024 * 1024


@cache
def tokenizer(path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(path)


def metrics() -> dict[str, object]:
    return json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_loads_and_completes_with_transformers(path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(path)
    inputs = tokenizer(path)("import os\nimport ", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert model.dtype == torch.bfloat16
    assert output.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_weights_are_bfloat16_with_one_embedding(path: Path) -> None:
    with safe_open(path / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert "lm_head.weight" not in names
        assert all(weights.get_tensor(name).dtype == torch.bfloat16 for name in names)
        assert all(weights.get_tensor(name).isfinite().all() for name in names)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_configuration(path: Path) -> None:
    config = AutoConfig.from_pretrained(path)
    generation = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    eos = tokenizer(path).eos_token_id
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer(path)) == 4096
    assert config.max_position_embeddings == 1024
    assert config.bos_token_id is None
    assert {name: generation[name] for name in SAMPLING} == SAMPLING
    assert generation["do_sample"] is True
    assert generation["eos_token_id"] == generation["pad_token_id"] == eos == config.eos_token_id


def test_shapes() -> None:
    llm, slm = (AutoConfig.from_pretrained(path) for path in (LLM_PATH, SLM_PATH))
    assert (llm.num_hidden_layers, llm.hidden_size, llm.intermediate_size) == (6, 256, 768)
    assert (llm.num_attention_heads, llm.num_key_value_heads, llm.head_dim) == (4, 2, 64)
    assert (slm.num_hidden_layers, slm.hidden_size, slm.intermediate_size) == (2, 96, 256)
    assert (slm.num_attention_heads, slm.num_key_value_heads, slm.head_dim) == (3, 1, 32)


def test_both_share_one_tokenizer() -> None:
    slm, llm = ((path / "tokenizer.json").read_bytes() for path in PATHS)
    assert slm == llm


def test_everything_fits_in_16_megabytes() -> None:
    sizes = [f.stat().st_size for f in FOLDER.rglob("*") if f.is_file() and f.suffix != ".pyc"]
    assert sum(sizes) < MAX_BYTES


@given(st.text())
def test_tokenizer_round_trips_any_text(text: str) -> None:
    encoder = tokenizer(LLM_PATH)
    assert encoder.decode(encoder.encode(text)) == text


@given(st.text(st.sampled_from("\t\n\r \x00ab_(.'é☃😀"), max_size=40))
def test_tokenizer_round_trips_whitespace_and_marks(text: str) -> None:
    encoder = tokenizer(LLM_PATH)
    assert encoder.decode(encoder.encode(text)) == text


@pytest.mark.parametrize("width", [1, 4, 8, 12, 16])
def test_an_indentation_is_one_token(width: int) -> None:
    tokens = tokenizer(LLM_PATH).tokenize(" " * width + "return\n")
    assert len(tokens) == 3 or width == 1


def test_eos_is_one_token_and_nothing_is_added() -> None:
    encoder = tokenizer(LLM_PATH)
    assert encoder.encode("<|endoftext|>") == [encoder.eos_token_id]
    assert encoder.encode("") == []


def test_card_states_the_metrics() -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == card.render(metrics())


def test_metrics_meet_what_the_pair_is_for() -> None:
    figures = metrics()
    greedy = figures["speculation"]["greedy"]
    assert figures["llm"]["held_out_loss"] < 2.6
    assert figures["llm"]["held_out_loss"] < figures["slm"]["held_out_loss"]
    assert greedy["agreement"] > 0.7
    assert greedy["tau"] > 3.4
