"""Scores of texts, against transformers' own forward."""

import numpy as np
import pytest
import torch
from conftest import TinyPair
from forwards import Forwards

from hybridgen import HybridGenerator
from hybridgen.profiling.score import score

CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # float32 through a few layers


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=3)


@pytest.fixture(scope="module")
def forwards(tiny_pair: TinyPair) -> Forwards:
    return Forwards(tiny_pair)


def texts() -> list[list[int]]:
    """More than the generator has rows; shorter, longer and as long as blocks of 16."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 380, n).tolist() for n in (5, 70, 17, 33, 2, 40, 16)]


def test_scores_are_those_of_a_plain_forward(
    generator: HybridGenerator, forwards: Forwards
) -> None:
    firsts = [1, 20, 1, 33, 1, 7, 15]
    found = score(generator.pair, texts(), firsts)
    for text, first, of in zip(texts(), firsts, found, strict=True):
        slm, llm = (forwards.say(name, text) for name in ("slm", "llm"))
        assert of.token_ids.tolist() == text[first:]
        assert of.slm_ids is not None and of.slm_ids.tolist() == slm.likeliest[first - 1 :].tolist()
        assert of.llm_ids is not None and of.llm_ids.tolist() == llm.likeliest[first - 1 :].tolist()
        for name in ("aleatoric", "epistemic", "entropy"):
            expected = getattr(slm, name)[first - 1 :]
            np.testing.assert_allclose(getattr(of, name), expected, **CLOSE)
        np.testing.assert_allclose(of.llm_logprob, llm.logprob[first - 1 :], **CLOSE)


def test_one_model_may_read_alone(generator: HybridGenerator) -> None:
    both = score(generator.pair, texts())
    slm, llm = score(generator.pair, texts(), llm=False), score(generator.pair, texts(), slm=False)
    for of, by_slm, by_llm in zip(both, slm, llm, strict=True):
        assert by_slm.llm_ids is None and by_slm.llm_logprob is None
        assert by_llm.aleatoric is None and by_llm.slm_ids is None
        np.testing.assert_array_equal(of.entropy, by_slm.entropy)
        np.testing.assert_array_equal(of.llm_logprob, by_llm.llm_logprob)


def test_the_evidence_is_that_asked_for(generator: HybridGenerator) -> None:
    probs, logits = (score(generator.pair, texts(), evidence=name) for name in ("probs", "logits"))
    assert max(of.aleatoric.max() for of in probs if of.aleatoric is not None) <= 1
    assert all(a.entropy.tolist() == b.entropy.tolist() for a, b in zip(probs, logits, strict=True))
    assert max(of.aleatoric.max() for of in logits if of.aleatoric is not None) > 1


def test_what_cannot_be_read_is_refused(generator: HybridGenerator, tiny_pair: TinyPair) -> None:
    with pytest.raises(ValueError, match=r"^first must be an integer from 1 to 3, got 0"):
        score(generator.pair, [[1, 2, 3]], 0)
    with pytest.raises(ValueError, match=r"^the length of a text must be .*256, got 257"):
        score(generator.pair, [[1] * 257])
    alone = HybridGenerator(llm_model_id=tiny_pair.llm, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="no SLM"):
        score(alone.pair, [[1, 2, 3]])
    assert score(alone.pair, [[1, 2, 3]], slm=False)[0].llm_ids is not None
    with generator.pair.turn(), pytest.raises(RuntimeError, match="inside another call"):
        score(generator.pair, [[1, 2, 3]])


def test_nan_is_told(tiny_pair: TinyPair) -> None:
    broken = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    broken.slm.weights.norm.fill_(torch.nan)
    with pytest.raises(ValueError, match="a model computed NaN"):
        score(broken.pair, [[1, 2, 3]])
