"""Anything may be asked of a generator, in any order: an error by name or a true result.

The suite makes a few hundred moves. For thousands of others:

    pytest -m fuzz tests/fuzz --fuzz-seeds 200        200 seeds of 40 moves
"""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair
from moves import STRATEGIES, TEXTS, random_move, run
from test_hostile_checkpoints import odd_bytes, odd_field, odd_header

from hybridgen import HybridGenerator

MOVES_EACH = 40


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "far_seed" in metafunc.fixturenames:
        many = metafunc.config.getoption("--fuzz-seeds")
        metafunc.parametrize("far_seed", range(1000, 1000 + many))


def make(pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*pair, device="cpu", dtype=torch.float32, max_seq_len=120)


def probes(generator: HybridGenerator) -> list[Any]:
    """What tells a used generator from a fresh one, if anything does."""
    common: dict[str, Any] = {"max_new_tokens": 12, "seed": 11, "print_stats": False}
    found = []
    for strategy in STRATEGIES:
        for prompt in (TEXTS[0], TEXTS[:3]):
            options = {"prompt": prompt, "strategy": strategy, "ignore_eos": True, **common}
            result = run(generator, options)
            found.append((result.text, result.tokens))
    return found


def play(pair: TinyPair, seed: int) -> None:
    generator, draw = make(pair), random.Random(seed)
    for number in range(MOVES_EACH):
        move, before = random_move(draw), draw.getstate()
        try:
            move(generator, draw)
        except AssertionError as error:
            draw.setstate(before)
            raise AssertionError(f"seed {seed}, move {number}, {move.__name__}") from error
    assert probes(generator) == probes(make(pair))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(12))
def test_moves(tiny_pair: TinyPair, seed: int) -> None:
    play(tiny_pair, seed)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_moves(tiny_pair: TinyPair, far_seed: int) -> None:
    play(tiny_pair, far_seed)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_damaged_checkpoints(tiny_pair: TinyPair, tmp_path: Path, far_seed: int) -> None:
    draw = random.Random(far_seed)
    folder = tmp_path / "llm"
    shutil.copytree(tiny_pair.llm, folder)
    case = draw.choice([odd_field, odd_header, odd_bytes])(folder, draw)
    began = time.perf_counter()
    try:
        generator = HybridGenerator(tiny_pair.slm, folder, device="cpu", dtype="float32")
    except ValueError as error:
        assert str(error).startswith(("llm_model_id", "slm_model_id and llm_model_id")), case
    else:
        assert isinstance(generator.generate([7], max_new_tokens=3, print_stats=False).text, str)
    assert time.perf_counter() - began < 10, case
