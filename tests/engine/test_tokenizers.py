"""A model's tokenizer, and which one a pair has: a given one is compared with the models' own."""

from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair, random_model, save, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridgen import HybridGenerator
from hybridgen.engine.tokenizers import load_tokenizer


def make(slm: Any, llm: Any, **options: Any) -> HybridGenerator:
    return HybridGenerator(slm, llm, device="cpu", dtype="float32", **options)


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model of fewer tokens."""
    return save(random_model(300, 1, 32, seed=1), train_tokenizer(300), tmp_path / "other")


def test_a_tokenizer(tiny_pair: TinyPair) -> None:
    tokenizer = load_tokenizer(tiny_pair.llm, "llm_model_id")
    assert tokenizer.decode(tokenizer("hello there")["input_ids"]) == "hello there"


@pytest.mark.parametrize("as_object", [False, True])
def test_the_models_own_tokenizers_are_compared(
    tiny_pair: TinyPair, other: Path, as_object: bool
) -> None:
    small, large = (loaded(other), loaded(tiny_pair.llm)) if as_object else (other, tiny_pair.llm)
    with pytest.raises(ValueError, match=r"same tokenizer.*300 tokens.*384.*\(SLM none, LLM \d+\)"):
        make(small, large)


@pytest.mark.parametrize("as_object", [False, True])
def test_a_given_tokenizer_is_compared_with_each_models_own(
    tiny_pair: TinyPair, tiny_tokenizer: Any, other: Path, as_object: bool
) -> None:
    def of(folder: Path) -> Any:
        return loaded(folder) if as_object else folder

    assert make(of(tiny_pair.slm), of(tiny_pair.llm), tokenizer=tiny_tokenizer)
    few = train_tokenizer(300)
    with pytest.raises(ValueError, match=r"^tokenizer is not that of slm_model_id: .*own 384"):
        make(of(tiny_pair.slm), of(tiny_pair.llm), tokenizer=few)
    # With one model's own out of reach, the other's still counts.
    nowhere = random_model(384, 1, 32, seed=1)
    with pytest.raises(ValueError, match=r"^tokenizer is not that of llm_model_id"):
        make(nowhere, of(tiny_pair.llm), tokenizer=few)
    # A tokenizer that suits both does not make one of two.
    with pytest.raises(ValueError, match="need the same tokenizer"):
        make(of(other), of(tiny_pair.llm), tokenizer=tiny_tokenizer)


def test_a_given_tokenizer_may_have_further_tokens(tiny_pair: TinyPair) -> None:
    more = AutoTokenizer.from_pretrained(tiny_pair.llm)
    more.add_special_tokens({"pad_token": "[PAD]"})
    assert make(*tiny_pair, tokenizer=more).tokenizer is more


def test_a_model_whose_own_tokenizer_cannot_be_found_passes(
    tiny_pair: TinyPair, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    few = train_tokenizer(300)
    nowhere = random_model(300, 1, 32, seed=1)
    gone = loaded(tiny_pair.llm)
    gone.name_or_path = str(tmp_path / "gone")
    bare = tmp_path / "bare"
    random_model(384, 1, 32, seed=1).save_pretrained(bare)
    assert make(nowhere, nowhere, tokenizer=few)
    assert make(bare, gone, tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match="slm_model_id is a model that was not loaded from any"):
        make(nowhere, tiny_pair.llm)
    with pytest.raises(ValueError, match=r"llm_model_id: cannot load .*/gone"):
        make(tiny_pair.slm, gone)


@pytest.mark.parametrize("value", [1.5, "x", True, 2**70, [0, None]])
def test_a_tokenizer_with_an_odd_eos_is_refused(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    odd = train_tokenizer()
    monkeypatch.setattr(type(odd), "eos_token_id", value, raising=False)
    with pytest.raises((TypeError, ValueError), match=r"^tokenizer: eos_token_id must be"):
        make(random_model(384, 1, 32, seed=1), random_model(384, 1, 32, seed=1), tokenizer=odd)
