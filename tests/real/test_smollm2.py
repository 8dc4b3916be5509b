"""What is promised of any pair, on the weights of a real model.

Real weights find what random and tiny ones do not: an order of summing that differs in one element
of 10,000 changed most texts of this model, and none of theirs.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridgen import HybridGenerator

pytestmark = pytest.mark.real

PROMPTS = [
    "The history of the steam engine begins",
    "import os\nimport sys\n",
    "Q: What is 17 * 23?\nA:",
    "Der schnelle braune Fuchs",
    "In physics, entropy is",
    "Once upon a time, in a small village, there lived",
]
SAMPLED = {"temperature": 0.8, "top_p": 0.95}
MODES: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "sampled": SAMPLED}


@pytest.fixture(scope="session")
def folder() -> Path:
    """Where `smollm2.py` wrote the pair."""
    return Path(os.environ["HYBRIDGEN_SMOLLM2"])


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def generator(request: pytest.FixtureRequest, threads: int, folder: Path) -> HybridGenerator:
    models = folder / "slm", folder / "llm"
    return HybridGenerator(
        *models, device="cpu", dtype=request.param, max_batch_size=6, max_seq_len=256
    )


def write(generator: HybridGenerator, prompt: Any, strategy: str, **options: Any) -> Any:
    settings = {"max_new_tokens": 24, "ignore_eos": True, "print_stats": False, **options}
    return generator.generate(prompt, strategy, **settings).tokens


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODES[request.param]


@pytest.fixture(scope="module")
def alone(generator: HybridGenerator, mode: dict[str, Any]) -> list[list[int]]:
    return [write(generator, p, "llm", seed=i, **mode) for i, p in enumerate(PROMPTS)]


def test_a_batch_has_the_text_of_its_rows(
    generator: HybridGenerator, mode: dict[str, Any], alone: list[list[int]]
) -> None:
    assert write(generator, PROMPTS, "llm", seed=0, **mode) == alone


@pytest.mark.parametrize("num_drafts", [1, 4, 7])
def test_speculation_has_the_text_of_the_llm(
    generator: HybridGenerator,
    mode: dict[str, Any],
    alone: list[list[int]],
    num_drafts: int,
) -> None:
    options = {"num_drafts": num_drafts, "verification": "coupled", **mode}
    for seed, prompt in enumerate(PROMPTS[:3]):
        assert write(generator, prompt, "speculative", seed=seed, **options) == alone[seed]
    assert write(generator, PROMPTS, "speculative", seed=0, **options) == alone


def test_routing_everything_is_the_llm(
    generator: HybridGenerator, mode: dict[str, Any], alone: list[list[int]]
) -> None:
    options = {"llm_fraction": 1.0, "llm_consecutive_tokens": 3, **mode}
    assert write(generator, PROMPTS[:2], "uncertainty", seed=0, **options) == alone[:2]


def test_in_float32_greedy_is_that_of_transformers(folder: Path) -> None:
    models = folder / "slm", folder / "llm"
    generator = HybridGenerator(*models, device="cpu", dtype=torch.float32, max_seq_len=256)
    model = AutoModelForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32)
    for prompt in PROMPTS:
        ids = generator.tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        ours = write(generator, prompt, "llm", temperature=0.0, ignore_eos=False)
        assert ours == expected.tolist()
