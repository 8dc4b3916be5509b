"""What is not used is in no memory; of Linux, whose processes can be asked."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_model

from hybridgen.engine.cache import Arena, CacheLayout
from hybridgen.engine.host_memory import (
    give_back_what_files_hold,
    give_back_what_is_free,
    untouched_zeros,
)
from hybridgen.kernels.linear import reads_plain

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


def test_a_files_pages_go_and_come_again(tmp_path: Path) -> None:
    save_file({"a": torch.full((16 * MB,), 3.0)}, tmp_path / "a.safetensors")
    mapped = load_file(tmp_path / "a.safetensors")["a"]
    assert mapped.sum() == 3.0 * 16 * MB  # in memory now
    full = resident()
    give_back_what_files_hold([mapped])
    assert full - resident() > 60 * MB
    assert (mapped == 3.0).all()
    mapped[5] = 7.0  # in this process alone: no file has it
    full = resident()
    give_back_what_files_hold([mapped])
    assert abs(full - resident()) < 4 * MB
    assert mapped[5] == 7.0


@pytest.mark.skipif(not reads_plain(torch.float32), reason="weights are not kept as they lie")
def test_a_checkpoint_takes_little_more_than_its_weights(tmp_path: Path) -> None:
    """Though half of it was copied, where products were fused; before it is used and after."""
    first, second = tmp_path / "first", tmp_path / "second"
    wide = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8}
    for folder in (first, second):
        random_model("llama", torch.bfloat16, **wide).save_pretrained(folder)
    weights = (second / "model.safetensors").stat().st_size
    assert weights > 90 * MB
    # In a process of its own: in this one what other tests have freed may be taken again.
    command = [sys.executable, "-c", LOAD_AND_STEP, str(first), str(second)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded, used = (int(word) / weights for word in told.split())
    assert loaded < 0.8 and used < 1.1, (loaded, used)


LOAD_AND_STEP = """
import os, sys, torch
from pathlib import Path
from hybridgen.engine.opening import look_at

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

held = []
for folder in sys.argv[1:]:  # the first compiles what the second uses
    before = resident()
    llm = look_at(None, folder).load(torch.device("cpu"), torch.float32, 1, 64).llm
    loaded = resident()
    held.append(llm)
    llm(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
print(loaded - before, resident() - before)
"""
