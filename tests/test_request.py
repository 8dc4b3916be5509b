"""A request is checked once, and every refusal names the argument, its value and what is right."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bad_values import HUGE, ODD, OUT_OF_RANGE, WRONG_TYPE, Items, Nothing, Number, Word

from hybridgen.parameters import MAX_STOPS
from hybridgen.prompts import Prompt
from hybridgen.request import Request, make_request

VOCAB = 100
CONTEXT = 64
STRATEGIES = ("speculative", "uncertainty", "entropy", "llm", "slm")


def request(prompt: object = (1, 2, 3), **changes: Any) -> Request:
    arguments = {
        "vocab_size": VOCAB,
        "max_positions": CONTEXT,
        "default_eos": (0,),
        "strategies": STRATEGIES,
        "max_new_tokens": 10,
    }
    return make_request(Prompt(None, prompt, 4), **{**arguments, **changes})


def test_the_defaults_are_valid_and_the_request_is_immutable() -> None:
    made = request()
    assert made.prompt_ids == ((1, 2, 3),)
    assert (made.strategy, made.num_drafts, made.verification) == ("speculative", "auto", None)
    assert (made.temperature, made.top_k, made.top_p, made.min_p) == (1.0, 0, 1.0, 0.0)
    assert (made.threshold, made.llm_fraction, made.llm_consecutive_tokens) == (None, None, 1)
    assert made.evidence == "probs"
    with pytest.raises(AttributeError):
        made.__setattr__("top_k", 5)


IN_RANGE = [
    ("max_new_tokens", 1),
    ("max_new_tokens", CONTEXT - 3),
    ("temperature", 0),
    ("temperature", 1e-6),
    ("temperature", 100.0),
    ("top_k", 1),
    ("top_p", 1e-9),
    ("top_p", 1),
    ("min_p", 0),
    ("min_p", 1.0),
    ("num_drafts", 1),
    ("num_drafts", 15),
    ("threshold", 0),
    ("threshold", 12.5),
    ("llm_fraction", 0),
    ("llm_fraction", 1),
    ("llm_consecutive_tokens", 16),
    ("verification", "coupled"),
    ("evidence", "logits"),
    ("strategy", "slm"),
    ("ignore_eos", True),
]


@pytest.mark.parametrize(("name", "value"), IN_RANGE)
def test_values_in_range_are_kept(name: str, value: object) -> None:
    assert getattr(request(**{name: value}), name) == value


NUMPY_NUMBERS = [
    ("max_new_tokens", np.int64(3)),
    ("top_k", np.uint8(3)),
    ("temperature", np.float32(0.5)),
    ("top_p", np.float64(0.5)),
    ("seed", np.int32(7)),
    ("ignore_eos", np.bool_(True)),
]


@pytest.mark.parametrize(("name", "value"), NUMPY_NUMBERS)
def test_numpy_scalars_become_python_numbers(name: str, value: Any) -> None:
    kept = getattr(request(**{name: value}), name)
    kept = kept[0] if name == "seed" else kept
    assert kept == value
    assert type(kept) in (int, float, bool)


@pytest.mark.parametrize(("name", "value"), [*WRONG_TYPE, ("top_k", None)])
def test_a_wrong_type_is_a_type_error_that_names_the_argument(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(name)}") as caught:
        request(**{name: value})
    culprits = [value, *value] if isinstance(value, (list, set)) else [value]
    assert any(f"({type(culprit).__name__})" in str(caught.value) for culprit in culprits)


NO_TOKENS = [("eos_token_id", value, "from 0 to 99") for value in (-1, VOCAB, [1, VOCAB])]


@pytest.mark.parametrize(("name", "value", "accepted"), OUT_OF_RANGE + NO_TOKENS)
def test_out_of_range_is_a_value_error_that_says_what_is_accepted(
    name: str, value: object, accepted: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(name)}") as caught:
        request(**{name: value})
    assert accepted in str(caught.value)


def test_an_unknown_strategy_lists_the_known_and_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'speculative'") as caught:
        request(strategy="speculativ")
    assert all(name in str(caught.value) for name in STRATEGIES)


def test_for_a_long_word_no_name_is_looked_for() -> None:
    with pytest.raises(ValueError, match=r"^strategy must be one of") as caught:
        request(strategy="e" * 100, strategies=("e" * 101,))
    assert "did you mean" not in str(caught.value)


def test_threshold_and_llm_fraction_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"threshold=0\.5 and llm_fraction=0\.2"):
        request(threshold=0.5, llm_fraction=0.2)


def test_top_k_of_the_whole_vocabulary_is_off() -> None:
    assert request(top_k=VOCAB - 1).top_k == VOCAB - 1
    assert request(top_k=VOCAB).top_k == 0
    assert request(top_k=10**12).top_k == 0


def test_a_seed_gives_row_r_the_seed_plus_r() -> None:
    three = [[1], [2], [3]]
    assert request(three, seed=7).seed == (7, 8, 9)
    assert request(three, seed=[5, 5, 2]).seed == (5, 5, 2)
    assert request(three, seed=np.array([1, 2, 3])).seed == (1, 2, 3)
    assert request(seed=2**63 - 1).seed == (2**63 - 1,)
    with pytest.raises(ValueError, match="seed"):
        request(three, seed=2**63 - 2)


def test_no_seed_draws_a_new_one_each_time() -> None:
    drawn = {request().seed for _ in range(20)}
    # Twenty draws of 32 bits: some pair is equal once in 2**32 / 190, 23 million runs.
    assert len(drawn) == 20


def test_eos_ids_default_to_the_checkpoints_and_can_be_ignored() -> None:
    assert request().eos_token_id == request().end_ids == (0,)
    assert request(eos_token_id=5).end_ids == (5,)
    assert request(eos_token_id=[5, 6, 5]).end_ids == (5, 6)
    assert request(eos_token_id=[]).end_ids == ()
    assert request(ignore_eos=True).end_ids == ()


def test_stop_is_one_string_or_several() -> None:
    assert request().stop == ()
    assert request(stop="end").stop == ("end",)
    assert request(stop=["a", "b", "a"]).stop == ("a", "b")


def test_a_stream_is_a_callable_or_for_one_row_a_streamer() -> None:
    streamer = SimpleNamespace(put=print, end=print)
    assert request(stream=print).stream is print
    assert request(stream=streamer).stream is streamer
    with pytest.raises(ValueError, match=r"transformers streamer.*one prompt, got 2"):
        request([[1], [2]], stream=streamer)
    assert request([[1], [2]], stream=print).stream is print


def test_a_stream_takes_a_piece_and_of_a_list_the_row_before_it() -> None:
    assert callable(request([[1], [2]], stream=lambda row, piece: None).stream)
    assert callable(request([[1]], stream=lambda row, piece, *more: None).stream)
    assert callable(request(stream=[].append).stream)
    with pytest.raises(
        TypeError, match=r"stream must be callable as stream\(row, piece\) of a list"
    ):
        request([[1], [2]], stream=lambda piece: None)
    with pytest.raises(TypeError, match=r"stream must be callable as stream\(piece\), got"):
        request(stream=lambda row, piece: None)


def test_prompts_must_have_tokens_of_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        request([[]])
    with pytest.raises(ValueError, match=r"prompt\[1\] is empty"):
        request([[1], []])
    with pytest.raises(ValueError, match="prompt is empty"):
        request([])
    for wrong in (-1, VOCAB):
        with pytest.raises(ValueError, match=f"token id {wrong}; ids must be from 0 to 99"):
            request([[1, wrong]])


def test_more_rows_than_the_cache_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 rows.*max_batch_size=4"):
        request([[1]] * 5)


def test_prompt_and_new_tokens_must_fit_and_the_error_gives_all_numbers() -> None:
    assert request([[1] * 54], max_new_tokens=10).rows == 1
    with pytest.raises(ValueError) as caught:
        request([[1] * 55], max_new_tokens=10)
    assert all(number in str(caught.value) for number in ("55", "10", "65", "64"))


def test_options_are_checked_before_the_prompt_is_tokenised() -> None:
    class NoTokenizer:
        def __call__(self, *arguments: Any, **options: Any) -> None:
            raise AssertionError("tokenised")

    for name, value in [
        ("top_k", -1),
        ("seed", -1),
        ("stop", ""),
        ("stream", 5),
        ("num_drafts", 0),
    ]:
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            make_request(
                Prompt(NoTokenizer(), "text"), vocab_size=9, max_positions=999, **{name: value}
            )


OPTIONS = [
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "num_drafts",
    "threshold",
    "llm_fraction",
    "llm_consecutive_tokens",
    "verification",
    "evidence",
    "strategy",
    "seed",
    "stop",
    "eos_token_id",
    "ignore_eos",
    "stream",
]


@pytest.mark.parametrize("name", OPTIONS)
def test_odd_values_are_taken_or_refused_by_name_and_in_short(name: str) -> None:
    for value in ODD:
        try:
            request(**{name: value})
        except (TypeError, ValueError) as error:
            assert re.match(rf"{name}\b", str(error))
            assert len(str(error)) < 500


@pytest.mark.parametrize("name", ["temperature", "threshold"])
def test_one_rule_for_what_a_float32_holds(name: str) -> None:
    for value in (10**39, 1e39, 3.5e38, HUGE, 1e-39, 1e-45, 1e-300):
        with pytest.raises(ValueError, match=rf"^{name} must be .*finite in float32.*1.2e-38"):
            request(**{name: value})


def test_float32_at_its_edges() -> None:
    smallest, largest = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
    for name in ("temperature", "threshold"):
        for value in (0, smallest, largest):
            assert getattr(request(**{name: value}), name) == value
    for name in ("top_p", "min_p", "llm_fraction"):
        with pytest.raises(ValueError, match=rf"^{name} must be .*finite in float32"):
            request(**{name: smallest / 2})


def test_subclasses_become_the_plain_thing() -> None:
    stops = [Word("end"), np.str_("x")]
    made = request(strategy=Word("llm"), stop=stops, max_new_tokens=Number(3))
    assert type(made.strategy) is type(made.stop[0]) is type(made.stop[1]) is str
    assert type(made.max_new_tokens) is int
    assert request(seed=Items([7])).seed == (7,)
    assert request(eos_token_id=Items([7])).eos_token_id == (7,)
    assert request(stop=Items(["a"])).stop == ("a",)


def test_lists_without_end_are_refused_by_their_length() -> None:
    for name in ("stop", "eos_token_id", "seed"):
        with pytest.raises(ValueError, match=rf"^{name} must .*1000000"):
            request(**{name: [1] * 10**6})
    assert len(request(stop=[str(i) for i in range(MAX_STOPS)]).stop) == MAX_STOPS
    with pytest.raises(ValueError, match=r"^stop must be strings of at most 4096 characters"):
        request(stop="x" * 4097)


def test_a_stream_whose_put_and_end_are_no_methods_is_refused() -> None:
    both = type("Both", (), {"put": 5, "end": 6, "__call__": print})()
    half = SimpleNamespace(put=print, end=None)
    for stream in (SimpleNamespace(put=5, end=print), half, both, Nothing(), type):
        with pytest.raises(TypeError, match=r"^stream must be .*methods put\(\) and end\(\)"):
            request(stream=stream)


def test_max_new_tokens_that_leave_no_room_are_refused_before_the_prompt_is_read() -> None:
    for value in (CONTEXT, HUGE):
        with pytest.raises(ValueError, match=r"^max_new_tokens must leave room"):
            request(max_new_tokens=value)
