"""One generator, several callers: texts never mix, whoever waits, interrupts or asks in between."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any

import pytest
import torch
from conftest import TinyPair

from hybridgen import GenerationStrategy, HybridGenerator
from hybridgen.utils import sample_token

STRATEGIES = ["speculative", "uncertainty", "entropy", "llm", "slm", "custom"]


class LlmAlone(GenerationStrategy):
    """Reads the arena as a strategy of a user's own does."""

    def generate(self, llm: Any, max_new_tokens: int, request: Any, **rest: Any) -> Any:
        ids, tokens = list(request.prompt_ids[0]), []
        for position in range(len(ids), len(ids) + max_new_tokens):
            known = ids + tokens
            for first in range(0, len(known), 16):
                part = torch.tensor([known[first : first + 16]])
                logits = llm(part, torch.tensor([first]))
            tokens.append(sample_token(logits[0, -1], 0.8, seed=request.seed[0], position=position))
        return str(tokens), {"tokens": tokens}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    made = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    made.strategies["custom"] = LlmAlone()
    return made


Job = tuple[str, str, int]
JOBS: list[Job] = [
    (prompt, strategy, seed)
    for seed, prompt in enumerate(
        ["def area(radius):\n", "größe straße", "the quick brown fox", "for"]
    )
    for strategy in STRATEGIES
]


def write(generator: HybridGenerator, job: Job, **options: Any) -> list[int]:
    prompt, strategy, seed = job
    settings = {"max_new_tokens": 12, "temperature": 0.8, "print_stats": False, **options}
    return generator.generate(prompt, strategy, seed=seed, **settings).tokens


@pytest.fixture(scope="module")
def alone(generator: HybridGenerator) -> list[list[int]]:
    return [write(generator, job) for job in JOBS]


def test_a_pool_of_threads(generator: HybridGenerator, alone: list[list[int]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: write(generator, job), JOBS * 3))
    assert found == alone * 3


def test_asyncio_tasks(generator: HybridGenerator, alone: list[list[int]]) -> None:
    async def everything() -> list[list[int]]:
        calls = (asyncio.to_thread(write, generator, job) for job in JOBS)
        return await asyncio.gather(*calls)

    assert asyncio.run(everything()) == alone


@pytest.mark.parametrize("strategy", STRATEGIES[:-1])
def test_a_call_waits_for_the_running_one(generator: HybridGenerator, strategy: str) -> None:
    first, second = ("def area(radius):\n", strategy, 1), ("größe straße", strategy, 2)
    expected = write(generator, first), write(generator, second)
    running, found = Event(), []

    def stream(piece: str) -> None:
        if not running.is_set():
            running.set()
            other.join(timeout=0.2)  # the other has every chance to go ahead
            assert not found

    other = Thread(target=lambda: (running.wait(), found.append(write(generator, second))))
    other.start()
    assert write(generator, first, stream=stream) == expected[0]
    other.join()
    assert found == [expected[1]]


@pytest.mark.parametrize("strategy", STRATEGIES[:-1])
def test_a_call_from_inside_its_own_stream_is_refused(
    generator: HybridGenerator, strategy: str
) -> None:
    job = ("def area(radius):\n", strategy, 1)
    expected, refused = write(generator, job), []

    def stream(piece: str) -> None:
        with pytest.raises(RuntimeError, match="inside another call") as error:
            write(generator, ("größe", "llm", 2))
        refused.append(error)

    assert write(generator, job, stream=stream) == expected
    assert refused


def test_a_call_from_inside_a_custom_strategy_is_refused(generator: HybridGenerator) -> None:
    class Nested(GenerationStrategy):
        def generate(self, **everything: Any) -> Any:
            return generator.generate("def", "llm", print_stats=False)

    generator.strategies["nested"] = Nested()
    try:
        with pytest.raises(RuntimeError, match="inside another call"):
            generator.generate("def", "nested", print_stats=False)
    finally:
        del generator.strategies["nested"]
    assert write(generator, JOBS[0]) == write(generator, JOBS[0])


def raises(error: BaseException) -> Callable[[str], None]:
    def stream(piece: str) -> None:
        raise error

    return stream


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_a_call_that_fails_lets_the_next_one_run(
    generator: HybridGenerator, alone: list[list[int]], error: BaseException
) -> None:
    with pytest.raises(type(error)):
        write(generator, JOBS[0], stream=raises(error))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda job: write(generator, job), JOBS[:4])) == alone[:4]


def test_two_generators_of_one_pair_of_models_do_not_wait(tiny_pair: TinyPair) -> None:
    made = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    other = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    expected, found = write(made, JOBS[0]), []

    def stream(piece: str) -> None:
        found.append(write(other, JOBS[0]))

    assert write(made, JOBS[0], stream=stream) == expected
    assert found and all(tokens == expected for tokens in found)
