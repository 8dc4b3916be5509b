"""The arena: one allocation, aligned views at fixed addresses, clear errors."""

import pytest
import torch

from hybridgen.engine.cache import ALIGNMENT, Arena, CacheLayout
from hybridgen.engine.room import available_bytes

LLM = CacheLayout(layers=3, kv_heads=2, head_dim=64, dtype=torch.float32)
SLM = CacheLayout(layers=1, kv_heads=1, head_dim=5, dtype=torch.bfloat16)


def test_views_have_the_shapes_that_decoders_ask_for() -> None:
    arena = Arena([SLM, LLM], rows=3, positions=256, device="cpu")
    assert arena.caches[0].shape == (1, 2, 1, 3, 256, 5)
    assert arena.caches[1].shape == (3, 2, 2, 3, 256, 64)
    assert [cache.dtype for cache in arena.caches] == [torch.bfloat16, torch.float32]
    assert not any(cache.any() for cache in arena.caches)


@pytest.mark.parametrize(("asked", "given"), [(1, 256), (256, 256), (257, 512), (1000, 1024)])
def test_positions_are_whole_chunks_of_keys(asked: int, given: int) -> None:
    arena = Arena([SLM], rows=1, positions=asked, device="cpu")
    assert arena.positions == arena.caches[0].shape[4] == given


def test_one_allocation_without_overlap() -> None:
    arena = Arena([SLM, LLM, SLM], rows=3, positions=256, device="cpu")
    assert len({cache.untyped_storage().data_ptr() for cache in arena.caches}) == 1
    assert arena.nbytes == arena.caches[0].untyped_storage().nbytes()
    assert all(cache.data_ptr() % ALIGNMENT == 0 for cache in arena.caches)
    for value, cache in enumerate(arena.caches, start=1):
        cache.fill_(value)
    for value, cache in enumerate(arena.caches, start=1):
        assert (cache == value).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_wiped_in_its_model_alone(value: float) -> None:
    arena = Arena([LLM, LLM], rows=3, positions=512, device="cpu")
    address = arena.caches[0].data_ptr()
    for cache in arena.caches:
        cache.fill_(2)
        cache[1:, :, :, 1, 299] = value  # a token that the first layer broke
        arena.wipe_if_broken(rows=1, positions=512)
        arena.wipe_if_broken(rows=3, positions=299)
        assert not cache[1, 0, 0, 1, 299].isfinite().any()
        arena.wipe_if_broken(rows=2, positions=300)
        assert not cache[:, :, :, :2, :300].any()
        assert (cache[:, :, :, 2] == 2).all() and (cache[..., 300:, :] == 2).all()
        arena.wipe_if_broken(rows=3, positions=512)
        assert (cache[:, :, :, 2] == 2).all()
    assert arena.caches[0].data_ptr() == address


def test_the_workspace_lies_beside_the_caches() -> None:
    arena = Arena([SLM, LLM], rows=3, positions=256, device="cpu", workspace=1000)
    bare = Arena([SLM, LLM], rows=3, positions=256, device="cpu")
    arena.workspace.fill_(255)
    assert arena.workspace.shape == (1000,) and arena.nbytes == bare.nbytes + 1000
    assert arena.workspace.data_ptr() % ALIGNMENT == 0
    assert not any(cache.any() for cache in arena.caches)


def test_too_large_says_what_is_needed_and_available_before_allocating() -> None:
    needed = 3 * 2 * 2 * 10_000 * 2**20 * 64 * 4
    with pytest.raises(ValueError, match="max_batch_size or max_seq_len") as caught:
        Arena([LLM], rows=10_000, positions=2**20, device="cpu")
    assert f"need {needed:,} bytes" in str(caught.value)
    assert "available" in str(caught.value)


@pytest.mark.parametrize(("rows", "positions"), [(0, 256), (1, 0)])
def test_an_empty_arena_is_refused(rows: int, positions: int) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Arena([LLM], rows, positions, "cpu")


def test_free_memory_is_known_here() -> None:
    available = available_bytes(torch.device("cpu"))
    assert available is None or available > 2**20
    assert available_bytes(torch.device("meta")) is None
