"""A generator in a forked process: it works on one thread, and elsewhere says what to do."""

import multiprocessing
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import pytest
import torch
from conftest import TinyPair
from transformers import AutoModelForCausalLM

from hybridgen import HybridGenerator, accelerate
from hybridgen.engine import forks

PATIENCE = 120.0  # seconds for what takes less than one
pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One to begin with; the tests may set others, and what was before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(generator: HybridGenerator, **options: Any) -> list[int]:
    settings = {"max_new_tokens": 12, "seed": 3, "print_stats": False, **options}
    return generator.generate("def area(radius):\n", **settings).tokens


def forked(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked process; what it raises, as a string."""

    def run() -> None:
        try:
            ours.send(work())
        except Exception as error:
            ours.send(f"{type(error).__name__}: {error}")

    context = multiprocessing.get_context("fork")
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(target=run)
    process.start()
    try:
        assert theirs.poll(PATIENCE), "it hangs"
        return theirs.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of threads and forks
class TestForks:
    def test_on_one_thread_it_writes_the_same_text(self, generator: HybridGenerator) -> None:
        expected = write(generator)
        assert [forked(lambda: write(generator)) for _ in range(3)] == [expected] * 3
        assert forked(lambda: forked_twice(generator)) == expected
        assert write(generator) == expected

    def test_what_was_read_is_reused_there(self, generator: HybridGenerator) -> None:
        write(generator)

        def again() -> int:
            options = {"max_new_tokens": 2, "reuse": True, "print_stats": False}
            return generator.generate("def area(radius):\n", **options).stats["reused_tokens"]

        assert forked(again) == again() > 0

    def test_with_threads_it_is_refused(self, generator: HybridGenerator) -> None:
        def with_threads() -> None:
            torch.set_num_threads(2)
            write(generator)

        told = forked(with_threads)
        assert told.startswith("RuntimeError: this process was forked"), told
        assert "spawn" in told and "torch.set_num_threads(1)" in told

    def test_and_works_when_the_threads_are_given_up(
        self, generator: HybridGenerator, threads: None
    ) -> None:
        expected = write(generator)

        def on_one_thread() -> list[int]:
            torch.set_num_threads(1)
            return write(generator)

        torch.set_num_threads(2)
        torch.ones(512, 512) @ torch.ones(512, 512)  # there are two now
        assert forked(on_one_thread) == expected

    def test_a_generator_is_not_made_with_threads_there_either(
        self, generator: HybridGenerator, tiny_pair: TinyPair
    ) -> None:
        def make(threads: int) -> list[int]:
            torch.set_num_threads(threads)
            return write(HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32))

        slm, llm = (AutoModelForCausalLM.from_pretrained(folder) for folder in tiny_pair)

        def speed_up() -> None:
            torch.set_num_threads(2)
            accelerate(llm, slm).generate(torch.tensor([[7, 8]]), max_new_tokens=2)

        for refused in (lambda: make(2), speed_up):
            assert forked(refused).startswith("RuntimeError: this process was forked")
        assert forked(lambda: make(1)) == write(generator)

    def test_a_call_that_ran_in_another_thread_is_not_waited_for(
        self, generator: HybridGenerator
    ) -> None:
        expected, running, over = write(generator), Event(), Event()

        def stream(piece: str) -> None:
            running.set()
            over.wait(PATIENCE)

        other = Thread(target=lambda: write(generator, stream=stream))
        other.start()
        try:
            assert running.wait(PATIENCE)
            assert forked(lambda: write(generator)) == expected
        finally:
            over.set()
            other.join()

    def test_a_fork_in_the_midst_of_a_call_is_inside_that_call(
        self, generator: HybridGenerator
    ) -> None:
        told: list[str] = []

        def stream(piece: str) -> None:
            if not told:
                told.append(forked(lambda: write(generator)))

        write(generator, stream=stream)
        assert "inside another call" in told[0]


def forked_twice(generator: HybridGenerator) -> Any:
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return forked(lambda: write(generator))


def test_a_card_is_refused_whatever_the_threads() -> None:
    with pytest.raises(RuntimeError, match=r"is on cuda:0, .*\"spawn\""):
        forks.check_usable([torch.device("cpu"), torch.device("cuda:0")])
