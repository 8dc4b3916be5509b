"""What is not used is in no memory; of Linux, whose processes can be asked."""

import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from hybridgen.engine.cache import Arena, CacheLayout
from hybridgen.engine.host_memory import give_back_what_is_free, untouched_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MB = 1 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_zeros_are_in_memory_where_they_were_written_to() -> None:
    before = resident()
    zeros = untouched_zeros(512 * MB)
    assert zeros.shape == (512 * MB,) and zeros.dtype == torch.uint8
    assert resident() - before < 4 * MB
    zeros.view(256, -1)[:, 0] = 1  # a byte of every 2 MB, which huge pages would bring whole
    assert resident() - before < 8 * MB
    assert zeros.view(256, -1)[:, :4096].sum() == 256
    zeros[: 64 * MB] = 1
    assert resident() - before > 60 * MB
    del zeros
    assert resident() - before < 8 * MB


def test_an_arena_takes_what_is_used_of_it() -> None:
    layout = CacheLayout(layers=16, kv_heads=8, head_dim=64, dtype=torch.float32)
    before = resident()
    arena = Arena([layout], rows=4, positions=4096, device="cpu")
    assert arena.nbytes >= 1024 * MB
    arena.caches[0][:, :, :, 0, :64] = 1.0  # 64 tokens of one row: 4 MB
    assert not arena.wipe_if_broken(1, 64)
    assert resident() - before < 16 * MB


def test_a_forked_process_will_have_its_own() -> None:
    zeros = untouched_zeros(MB)
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_ = line.split()
        first, last = (int(address, 16) for address in where.split("-"))
        if first <= zeros.data_ptr() < last:
            assert rights == "rw-p"  # private; shared would be an s
            return
    raise AssertionError("it is nowhere")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back by themselves")
def test_what_was_freed_between_what_is_used_goes_back() -> None:
    blocks = [bytearray(b"x") * 65_536 for _ in range(4_000)]
    full = resident()
    del blocks[::2]
    give_back_what_is_free()
    assert full - resident() > 100 * MB
