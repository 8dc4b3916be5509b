"""Thresholds from a share of tokens: chosen from prompts, or moving as a text is written."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyPair

from hybridgen import HybridGenerator
from hybridgen.profiling.calibrate import SCORE_NAMES, visited

PROMPTS = [f"def {name}(x):\n" for name in ["area", "sort", "load", "find"]] * 3
OPTIONS: dict[str, Any] = {"max_new_tokens": 60, "seed": 2, "ignore_eos": True, "temperature": 0.9}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def embedded() -> HybridGenerator:
    return HybridGenerator(device="cpu")


@pytest.mark.parametrize("metric", [*SCORE_NAMES])
@pytest.mark.parametrize("writes", [1, 3])
def test_the_share_is_achieved_and_its_interval_tells_how_well(
    generator: HybridGenerator, metric: str, writes: int
) -> None:
    found = generator.calibrate(
        PROMPTS, metric, 0.3, llm_consecutive_tokens=writes, resamples=200, **OPTIONS
    )
    assert (found.metric, found.llm_fraction, found.prompts) == (metric, 0.3, len(PROMPTS))
    assert found.tokens == 60 * len(PROMPTS)
    low, high = found.fraction_interval
    assert low < found.achieved_fraction < high and high - low < 0.25
    assert found.threshold_interval[0] <= found.threshold <= found.threshold_interval[1]
    # Texts of a tiny random pair are much alike: the threshold misses by a few points at most.
    assert found.achieved_fraction == pytest.approx(0.3, abs=0.1)


def test_what_is_achieved_is_measured_by_the_threshold_itself(generator: HybridGenerator) -> None:
    found = generator.calibrate(PROMPTS, "entropy", 0.2, resamples=20, **OPTIONS)
    options = OPTIONS | {"seed": 2 + 2 * len(PROMPTS), "print_stats": False}
    stats = generator.generate(PROMPTS, "entropy", threshold=found.threshold, **options).stats
    assert found.achieved_fraction == stats["llm_tokens"] / stats["total_tokens"]
    assert found == generator.calibrate(PROMPTS, "entropy", 0.2, resamples=20, **OPTIONS)


def test_it_reads_well(generator: HybridGenerator) -> None:
    found = generator.calibrate("x = 1", resamples=20, max_new_tokens=20, seed=1)
    assert repr(found).startswith("Calibration(uncertainty > 0.") and len(repr(found)) < 200
    assert "asked 20.0% by the LLM, achieved " in repr(found)


def test_where_the_llm_writes_on_the_slm_is_not_asked() -> None:
    values = np.array([0.1, 0.9, 0.9, 0.1, 0.1, 0.9, 0.2])
    assert visited(values, 0.5, 1) == [0, 1, 2, 3, 4, 5, 6]
    assert visited(values, 0.5, 3) == [0, 1, 4, 5]


def test_what_cannot_be_calibrated_is_refused(
    generator: HybridGenerator, tiny_pair: TinyPair
) -> None:
    with pytest.raises(ValueError, match="metric must be one of 'uncertainty', 'entropy'"):
        generator.calibrate(PROMPTS, "noise")
    with pytest.raises(ValueError, match="llm_fraction must be a number from 0 to 1, got 2"):
        generator.calibrate(PROMPTS, "entropy", 2)
    with pytest.raises(TypeError, match="unexpected argument 'threshold'"):
        generator.calibrate(PROMPTS, threshold=0.5)
    alone = HybridGenerator(llm_model_id=tiny_pair.llm, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="the generator has none"):
        alone.calibrate(PROMPTS)


@pytest.mark.parametrize("metric", [*SCORE_NAMES])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.5])
def test_a_moving_threshold_keeps_its_budget(
    embedded: HybridGenerator, metric: str, fraction: float
) -> None:
    """Within 3 points over 1,000 tokens. It cannot fail by chance: a row is never off by more than
    32 * max(rate, 1 - rate) + 1 decisions, 29.8 at 0.1 (see `kernels.routing`). Measured on 32
    texts, 0.9 points at most; of a running quantile alone, 27 of 128 texts were off by more than
    3."""
    options = {"max_new_tokens": 1000, "ignore_eos": True, "seed": 100, "print_stats": False}
    stats = embedded.generate("import os\n", metric, llm_fraction=fraction, **options).stats
    assert stats["llm_tokens"] / 1000 == pytest.approx(fraction, abs=0.03)
