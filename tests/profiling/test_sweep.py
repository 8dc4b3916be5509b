"""A sweep of a tiny pair, recomputed by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyPair
from forwards import Forwards

from hybridgen import HybridGenerator
from hybridgen.kernels.philox import uniform
from hybridgen.profiling.quality import Point, Sweep
from hybridgen.profiling.random_router import ROUTER, RandomRouting
from hybridgen.profiling.routed import request_of, written
from hybridgen.profiling.sweep import sweep

PROMPTS = ["def area(r):\n", "import os", "x = 1\ny =", "class A"]
NEW = 12
OPTIONS: dict[str, Any] = {"temperature": 0.9, "seed": 3, "ignore_eos": True}
THRESHOLDS = {"uncertainty": [0.5, 0.9], "entropy": [2.0]}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=3)


@pytest.fixture(scope="module")
def swept(generator: HybridGenerator) -> Sweep:
    grid = {"thresholds": THRESHOLDS, "fractions": [0.25]}
    return sweep(generator, PROMPTS, max_new_tokens=NEW, **grid, **OPTIONS)


def routed(generator: HybridGenerator, prompt: list[int], seed: int, threshold: float) -> Any:
    """What a random router writes, a token at a time by a call of its own; and by whom."""
    text, llm = [*prompt], 0
    for _ in range(NEW):
        asks = uniform(seed, len(text), 0, ROUTER) > threshold
        options = OPTIONS | {"seed": seed, "max_new_tokens": 1, "print_stats": False}
        text += generator.generate(text, "llm" if asks else "slm", **options).tokens
        llm += bool(asks)
    return text[len(prompt) :], llm


def by_hand(generator: HybridGenerator, point: Point) -> tuple[list[list[int]], list[int]]:
    """New tokens of each prompt, and how many are the LLM's, of the point's router."""
    prompts = [generator.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    if point.router == "random":
        found = [routed(generator, p, 3 + i, 0.75) for i, p in enumerate(prompts)]
        return [tokens for tokens, _ in found], [llm for _, llm in found]
    options = {} if point.threshold is None else {"threshold": point.threshold}
    options |= OPTIONS | {"max_new_tokens": NEW, "print_stats": False}
    result = generator.generate(PROMPTS, point.router, **options)
    return result.tokens, [row["llm_tokens"] for row in result.stats["rows"]]


def test_every_number_is_what_it_says(
    generator: HybridGenerator, swept: Sweep, tiny_pair: TinyPair
) -> None:
    forwards = Forwards(tiny_pair)
    order = [(p.router, p.threshold) for p in swept.points]
    assert order == [
        ("slm", None),
        ("uncertainty", 0.5),
        ("uncertainty", 0.9),
        ("entropy", 2.0),
        ("random", 0.75),
        ("llm", None),
    ]
    pooled: dict[str, list[float]] = {"uncertainty": [], "entropy": [], "differs": []}
    for p in swept.points:
        tokens, llm_tokens = by_hand(generator, p)
        assert p.tokens == NEW * len(PROMPTS) and p.tokens_per_second > 0
        assert p.llm_fraction == sum(llm_tokens) / p.tokens
        logprobs, greedy = [], []
        for prompt, new in zip(PROMPTS, tokens, strict=True):
            ids = generator.tokenizer(prompt)["input_ids"]
            slm, llm = (forwards.say(name, ids + new) for name in ("slm", "llm"))
            new_ones = slice(len(ids) - 1, None)
            logprobs += llm.logprob[new_ones].tolist()
            greedy += (llm.likeliest[new_ones] != new).tolist()
            if p.threshold is not None:
                pooled["uncertainty"] += slm.aleatoric[new_ones].tolist()
                pooled["entropy"] += slm.entropy[new_ones].tolist()
                differs = slm.likeliest[new_ones] != llm.likeliest[new_ones]
                pooled["differs"] += differs.tolist()
        assert p.log_likelihood == pytest.approx(np.mean(logprobs), abs=1e-4)
        assert p.disagreement == np.mean(greedy)
    differs = np.array(pooled["differs"], bool)
    assert swept.places == len(differs) and swept.differing == differs.mean()
    for metric in ("uncertainty", "entropy"):
        a, b = (np.array(pooled[metric])[differs == of] for of in (True, False))
        right = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
        assert swept.auroc[metric] == pytest.approx(right, abs=1e-3)  # near-ties may turn round
    assert swept.seeds == (3, 4, 5, 6) and swept.prompts == 4 and swept.max_new_tokens == NEW


def test_the_fractions_of_the_slms_own_text_exceed_their_thresholds(
    generator: HybridGenerator, tiny_pair: TinyPair
) -> None:
    found = sweep(generator, PROMPTS, ["entropy"], fractions=[0.25], max_new_tokens=NEW, **OPTIONS)
    forwards = Forwards(tiny_pair)
    tokens, _ = by_hand(generator, found.points[0])
    values = []
    for prompt, new in zip(PROMPTS, tokens, strict=True):
        ids = generator.tokenizer(prompt)["input_ids"]
        values += forwards.say("slm", ids + new).entropy[len(ids) - 1 :].tolist()
    (threshold,) = (p.threshold for p in found.points if p.router == "entropy")
    above = int(len(values) * 0.25 + 0.5)
    assert threshold == pytest.approx(sorted(values, reverse=True)[above], rel=1e-4)


@pytest.mark.parametrize("writes", [1, 3])
def test_the_random_router_asks_the_llm_as_often_as_it_is_told(
    generator: HybridGenerator, writes: int
) -> None:
    router = RandomRouting()
    for threshold in (0.0, 0.7, 1.0):
        options = {"threshold": threshold, "llm_consecutive_tokens": writes, "seed": 1}
        options |= {"ignore_eos": True, "max_new_tokens": 200}
        texts = written(generator, router, request_of(generator, router, PROMPTS, options))
        rate = 1 - threshold
        expected = rate * writes / (1 - rate + rate * writes)
        # 800 tokens: 3.5 standard deviations of as many draws, of runs of tokens for 3.
        width = 3.5 * (expected * (1 - expected) * writes / 800) ** 0.5
        assert texts.llm_fraction == pytest.approx(expected, abs=width + 1e-9)


def test_a_curve_goes_from_the_slm_to_the_llm(swept: Sweep) -> None:
    for router in ("uncertainty", "entropy", "random"):
        fractions, values = swept.curve(router)
        assert fractions[0] == 0 and fractions[-1] == 1 and bool((np.diff(fractions) >= 0).all())
        assert swept.log_likelihood(router, 0) == swept.points[0].log_likelihood == values[0]
        assert swept.log_likelihood(router, 1) == swept.points[-1].log_likelihood
    with pytest.raises(
        ValueError, match="router must be one of 'uncertainty', 'entropy', 'random'"
    ):
        swept.curve("noise")


def test_the_table_has_every_point(swept: Sweep) -> None:
    lines = str(swept).splitlines()
    rows = [line for line in lines if "%" in line][: len(swept.points)]
    for p, row in zip(swept.points, rows, strict=True):
        assert row.split()[0] == p.router and f"{p.log_likelihood:.3f}" in row
        assert f"{p.llm_fraction:.1%}" in row and f"{p.disagreement:.1%}" in row
    assert len({len(line) for line in rows}) == 1
    assert re.search(r"^uncertainty +0\.\d{3}$", str(swept), re.M)
    assert max(map(len, lines)) <= 80


def test_files_come_back_as_they_were(swept: Sweep, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    swept.save(path)
    assert Sweep.load(path) == swept
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"version": 9}))
    with pytest.raises(ValueError, match=r"version 9; this hybridgen reads 1"):
        Sweep.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a sweep that hybridgen saved"):
        Sweep.load(path)


def test_a_plot_is_drawn_where_matplotlib_is(
    swept: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"pip install 'hybridgen\[plot\]'"):
            swept.plot(tmp_path / "x.png")
    pytest.importorskip("matplotlib")
    swept.plot(tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text()
    for name, area in swept.auroc.items():
        assert f"{name} (AUROC {area:.3f})" in drawn
    assert "slm alone" in drawn and "llm alone" in drawn


def test_what_a_sweep_decides_itself_is_refused(
    generator: HybridGenerator, tiny_pair: TinyPair
) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'llm_fraction'"):
        sweep(generator, PROMPTS, llm_fraction=0.2)
    with pytest.raises(TypeError, match="unexpected argument 'temprature'"):
        sweep(generator, PROMPTS, temprature=0.2)
    with pytest.raises(ValueError, match="metrics must be one of 'uncertainty', 'entropy'"):
        sweep(generator, PROMPTS, ["noise"])
    with pytest.raises(ValueError, match="fractions must be numbers from 0 to 1"):
        sweep(generator, PROMPTS, fractions=[2])
    alone = HybridGenerator(llm_model_id=tiny_pair.llm, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="the generator has no SLM"):
        sweep(alone, PROMPTS)
