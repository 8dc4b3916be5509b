"""What goes wrong, or comes from outside, in `generate`: it is said, and leaves no trace."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TinyPair

from hybridgen import HybridGenerator

PROMPT = "def area(radius):\n"
STRATEGIES = ["speculative", "uncertainty", "entropy", "llm", "slm"]


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)


def write(generator: HybridGenerator, prompt: Any = PROMPT, **options: Any) -> Any:
    settings = {"max_new_tokens": 30, "temperature": 0.9, "seed": 1, "print_stats": False}
    return generator.generate(prompt, **{**settings, **options})


@pytest.mark.parametrize("name", ["fields", "facts", "vocab_size", "given", "own"])
def test_no_unknown_name_is_taken_for_one_of_ours(generator: HybridGenerator, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^generate\(\) got an unexpected argument '{name}'"):
        write(generator, **{name: 3})


@pytest.mark.parametrize("broken", ["slm", "llm"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_is_an_error_and_does_not_stay(tiny_pair: TinyPair, strategy: str, broken: str) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    options = {"strategy": strategy, "temperature": 0.7, "llm_fraction": 0.5}
    if strategy in ("speculative", "llm", "slm"):
        options.pop("llm_fraction")
    if strategy == "speculative":
        options["num_drafts"] = 4  # "auto" need not ask the SLM
    expected = write(generator, **options).tokens
    norm = getattr(generator, broken).weights.norm
    healthy = norm.clone()
    norm[0] = float("nan")
    if strategy not in ({"slm", "llm"} - {broken}):
        with pytest.raises(ValueError, match="NaN"):
            write(generator, **options)
    norm.copy_(healthy)
    assert write(generator, **options).tokens == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_autocast_around_a_call_changes_nothing(
    tiny_pair: TinyPair, dtype: torch.dtype, strategy: str
) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=dtype)
    expected = write(generator, strategy=strategy).tokens
    for other in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=other):
            assert write(generator, strategy=strategy).tokens == expected


@pytest.mark.parametrize("name", ["prefill", "__call__"])
def test_a_streamer_is_told_the_end_also_of_a_failure(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise LookupError("the model is gone")

    calls: list[str] = []
    streamer = SimpleNamespace(put=lambda _: calls.append("put"), end=lambda: calls.append("end"))
    monkeypatch.setattr(type(generator.llm), name, fail)
    with pytest.raises(LookupError, match="the model is gone"):
        write(generator, strategy="llm", stream=streamer)
    assert calls == ["put", "end"]


def test_what_the_llm_recommends_and_is_not_applied_is_named_once(tiny_pair: TinyPair) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    write(generator)
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    config = generator.llm.generation_config
    config.typical_p, config.begin_suppress_tokens, config.num_beams = 0.9, [3], 1
    with pytest.raises(ValueError, match=r"^top_k must"):
        write(generator, top_k=-1)
    told = r"^the LLM's generation config asks for begin_suppress_tokens=\[3\], typical_p=0.9,"
    with pytest.warns(UserWarning, match=told) as caught:
        write(generator)
        write(generator)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_sampling_default_that_is_wrong_says_where_it_is_from(tiny_pair: TinyPair) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    generator.llm.generation_config.top_p = "most"
    with pytest.raises(TypeError, match=r"^top_p \(from the LLM's generation config\) must"):
        write(generator)
    assert write(generator, top_p=0.9).tokens


def test_an_interrupt_leaves_the_generator_usable(generator: HybridGenerator) -> None:
    expected = write(generator).tokens

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    for strategy in STRATEGIES:
        with pytest.raises(KeyboardInterrupt):
            write(generator, strategy=strategy, stream=interrupt)
    assert write(generator).tokens == expected


def test_a_thousand_generations_leave_memory_flat(generator: HybridGenerator) -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def burst(count: int) -> None:
        for seed in range(count):
            write(generator, strategy=STRATEGIES[seed % 5], seed=seed, max_new_tokens=3)
        gc.collect()

    burst(200)
    grown = []
    for _ in range(2):
        before = resident()
        burst(1000)
        grown.append(resident() - before)
    # A leak of one state of this pair a call would be 40 MB each time; the allocator's own drift,
    # after what else a process has run, comes to an end.
    assert min(grown) < 8 << 20
