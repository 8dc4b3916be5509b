"""Memory that does not suffice is told apart by what was to take it, before and after."""

import errno
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair
from tiny_models import random_model

from hybridgen import HybridGenerator
from hybridgen.engine import loading, room
from hybridgen.engine.cache import CacheLayout, Footprint, demand
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loading import load, look
from hybridgen.engine.room import Needs, check_room, explained, indexed

CPU, FIRST, SECOND = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))
LAYOUT = CacheLayout(layers=1, kv_heads=1, head_dim=8, dtype=torch.float32)
CACHE = 2 * 8 * 4 * 256  # bytes of one row of up to 256 positions
ADVICE = "lower max_batch_size or max_seq_len, or take a smaller dtype"


def test_what_is_asked_of_each_device() -> None:
    away = Footprint(CacheLayout(1, 1, 8, torch.float32, SECOND), weights=100, logits=7)
    here = Footprint(LAYOUT, weights=1000, logits=9)
    assert demand([away, here], 2, 200, "cuda:0", state=50) == {
        FIRST: Needs(1000, 2 * CACHE, 50, 18),
        SECOND: Needs(100, 2 * CACHE, 0, 14),
    }
    both = Needs(1100, 4 * CACHE, 50, 18)
    assert demand([Footprint(LAYOUT, 100, 7), here], 2, 200, FIRST, 50) == {FIRST: both}
    assert indexed(torch.device("cuda")) == FIRST and indexed(CPU) == CPU


def test_the_device_that_is_short_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {FIRST: 10_000, SECOND: 1_999}
    monkeypatch.setattr(room, "available_bytes", free.get)
    check_room({FIRST: Needs(5_000, 4_000, 0, 1_000), SECOND: Needs(cache=1_999)}, 2, 30)
    check_room({CPU: Needs(1 << 60)}, 2, 30)  # the system does not say
    with pytest.raises(ValueError) as caught:
        check_room({FIRST: Needs(5_000), SECOND: Needs(1_000, 800, 150, 50)}, 2, 30)
    assert str(caught.value) == (
        "2 rows of 30 positions need 2,000 bytes of cuda:1 (weights 1,000, key-value cache 800, "
        f"state of the rounds 150, scratch, at least 50), of which 1,999 are available: {ADVICE}"
    )


def test_weights_count_before_they_are_read(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [look(path, "llm_model_id") for path in tiny_pair]
    footprints = [model.footprint(CPU, torch.float32) for model in models]
    decoders = [model.load(CPU, torch.float32, batch_invariant=False) for model in models]
    for one, decoder in zip(footprints, decoders, strict=True):
        assert one.weights <= decoder.nbytes <= 1.01 * one.weights  # a gain for each head
    assert [one.layout for one in footprints] == [
        CacheLayout(*list(vars(one.cache_layout()).values())[:4], device=CPU) for one in decoders
    ]
    needed = demand(footprints, 1, 64 + 48, CPU)[CPU]
    monkeypatch.setattr(room, "available_bytes", lambda device: needed.total - 1)
    monkeypatch.setattr(loading.Found, "load", None)  # not reached
    with pytest.raises(ValueError, match=rf"weights {needed.weights:,}, key-value cache"):
        HybridGenerator(
            *tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=1, max_seq_len=64
        )


def test_a_loaded_model_takes_only_what_it_does_not_have() -> None:
    model = random_model("qwen3")
    assert look(model, "llm_model_id").footprint(CPU).weights == 0
    there = look(model, "llm_model_id").footprint(SECOND, torch.bfloat16)
    assert there.weights == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert there.layout.device == SECOND


def test_out_of_memory_is_explained() -> None:
    needs = {FIRST: Needs(1_000, 800, 150, 50), SECOND: Needs(5)}
    with pytest.raises(torch.OutOfMemoryError) as caught, explained(lambda: needs):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert str(caught.value) == (
        "out of memory, where 2,000 bytes of cuda:0 (weights 1,000, key-value cache 800, state of "
        "the rounds 150, scratch, at least 50) and 5 bytes of cuda:1 (weights 5) were predicted: "
        f"{ADVICE}. torch says: CUDA out of memory"
    )
    with pytest.raises(KeyError), explained(lambda: needs):
        raise KeyError


class Full:
    """An allocator that has nothing left, whoever asks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")


def test_an_arena_that_does_not_fit_all_the_same(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def granted(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", granted)
    told = r"weights [\d,]+, key-value cache [\d,]+, state of the rounds [\d,]+, scratch, at least"
    with pytest.raises(torch.OutOfMemoryError, match=rf"{told}.*{ADVICE}.*Cannot allocate"):
        HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)


def test_weights_that_do_not_fit_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("qwen3")
    model.save_pretrained(tmp_path)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(loading, "_place", Full)
    with pytest.raises(torch.OutOfMemoryError, match=rf"of cpu \(weights {size:,}\).*{ADVICE}"):
        load(tmp_path, "llm_model_id", "cpu", torch.float32)


def test_a_call_that_finds_no_memory_leaves_the_generator_usable(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    options = {"max_new_tokens": 5, "seed": 1, "print_stats": False}
    expected = generator.generate("def", **options).tokens
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "_logits", Full)
        with pytest.raises(torch.OutOfMemoryError, match=rf"weights.*scratch.*{ADVICE}"):
            generator.generate("def", **options)
    assert generator.generate("def", **options).tokens == expected
