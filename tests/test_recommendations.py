"""What the LLM's generation config recommends is a default, or named where it is not applied."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from hybridgen.prompts import Prompt
from hybridgen.recommendations import not_applied, processing_defaults, sampling_defaults
from hybridgen.request import make_request


def test_sampling_defaults_come_from_the_generation_config() -> None:
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert sampling_defaults(None) == off
    qwen = SimpleNamespace(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, min_p=None)
    assert sampling_defaults(qwen) == {**off, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert sampling_defaults(qwen, top_k=0, temperature=0) == {
        **off,
        "temperature": 0,
        "top_p": 0.95,
    }
    assert sampling_defaults(SimpleNamespace(do_sample=None, temperature=None)) == off
    greedy = SimpleNamespace(do_sample=False, temperature=1.0)
    assert sampling_defaults(greedy)["temperature"] == 0.0
    assert sampling_defaults(greedy, temperature=0.7)["temperature"] == 0.7


def config(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": None}, "temperature", 1.0),
        ({"temperature": 1}, "temperature", 1.0),
        ({"do_sample": False, "temperature": 0.7}, "temperature", 0.0),
        ({"do_sample": 0}, "temperature", 0.0),
        ({"top_k": None}, "top_k", 0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 20.0}, "top_k", 20),
        ({"top_p": None}, "top_p", 1.0),
        ({"top_p": 1}, "top_p", 1.0),
        ({"top_p": 2.5}, "top_p", 1.0),
        ({"min_p": None}, "min_p", 0.0),
        ({"min_p": 0}, "min_p", 0.0),
    ],
)
def test_off_values_and_odd_types_of_the_generation_config(
    fields: dict[str, Any], name: str, value: object
) -> None:
    taken = sampling_defaults(config(**fields))[name]
    assert taken == value
    assert type(taken) is type(value)


def test_top_p_0_of_the_generation_config_keeps_the_likeliest_token() -> None:
    top_p = sampling_defaults(config(top_p=0.0))["top_p"]
    made = make_request(Prompt(None, [1], 1), vocab_size=9, max_positions=999, top_p=top_p)
    assert 0 < made.top_p < 1e-37


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", -1.0),
        ("temperature", 1e39),
        ("top_k", -2),
        ("top_k", 20.5),
        ("top_k", "20"),
        ("top_p", -0.1),
        ("top_p", [0.9]),
        ("min_p", 1.5),
        ("min_p", True),
    ],
)
def test_an_error_about_the_generation_config_says_so(name: str, value: object) -> None:
    source = rf"^{name} \(from the LLM's generation config\) must be"
    with pytest.raises((TypeError, ValueError), match=source):
        sampling_defaults(config(**{name: value}))
    assert sampling_defaults(config(**{name: value}), **{name: 0.5})[name] == 0.5


SILENT = {
    "min_length": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1,
    "remove_invalid_values": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "encoder_repetition_penalty": 1.5,
    "max_length": 4096,
    "max_new_tokens": 2048,
    "length_penalty": 2.0,
    "renormalize_logits": True,
}
LOUD = {
    "begin_suppress_tokens": [5],
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 0,
    "sequence_bias": {(5,): 1.0},
    "exponential_decay_length_penalty": (5, 1.1),
    "min_length": 5,
    "max_time": 1.0,
    "stop_strings": ["end"],
    "typical_p": 0.9,
    "top_h": 0.5,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-4,
    "guidance_scale": 1.5,
    "num_beams": 4,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
}


def test_recommendations_that_are_not_applied_are_found_and_off_values_are_not() -> None:
    assert not_applied(None) == not_applied(config(**SILENT)) == {}
    assert not_applied(GenerationConfig()) == {}
    defaults = GenerationConfig._get_default_generation_params()
    assert not_applied(config(**defaults)) == {}, "what transformers fills in"
    assert not_applied(config(**LOUD)) == LOUD
    assert not_applied(GenerationConfig(**LOUD)) == LOUD
    odd = {"begin_suppress_tokens": 3, "guidance_scale": "1.0"}
    assert not_applied(config(**odd)) == odd


def test_processors_are_taken_from_the_config_and_off_values_are_off() -> None:
    asked = {
        "repetition_penalty": 1.05,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 5,
        "suppress_tokens": [5, 99],
        "bad_words_ids": [[5], [6, 99]],
    }
    taken = processing_defaults(GenerationConfig(**asked), vocab_size=50)
    assert taken == asked | {"suppress_tokens": [5], "bad_words_ids": [(5,)]}
    assert processing_defaults(None, 50) == processing_defaults(GenerationConfig(), 50) == {}
    assert processing_defaults(config(min_new_tokens=-3), 50) == {"min_new_tokens": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", "1.1"),
        ("no_repeat_ngram_size", 2.5),
        ("suppress_tokens", 7),
        ("bad_words_ids", [[]]),
    ],
)
def test_a_processor_that_cannot_be_used_says_where_it_is_from(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name}.* \(from the LLM's generation"):
        processing_defaults(config(**{name: value}), 50)
