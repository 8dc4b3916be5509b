"""One preallocated key-value arena for the models of a pair.

The arena is allocated once and never grows, so addresses are fixed (a captured graph may replay
over it) and no call allocates per token. It keeps no length: a decoder is told where to write.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgen.kernels.attention import KEY_CHUNK

ALIGNMENT = 16


@dataclass(frozen=True)
class CacheLayout:
    """What one model keeps per position: a key and a value for each layer and key head."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def nbytes(self, rows: int, positions: int) -> int:
        """Bytes for ``rows`` sequences of ``positions`` positions."""
        numbers = self.layers * 2 * self.kv_heads * rows * positions * self.head_dim
        return numbers * self.dtype.itemsize


class Arena:
    """The zero-filled caches of several models, in one allocation.

    ``caches[i]`` is a view [layers, 2 (key, value), kv_heads, rows, positions, head_dim] for
    ``layouts[i]``. ``positions`` is rounded up to whole chunks of `KEY_CHUNK` keys. ``workspace``,
    uint8 [workspace bytes], lies beside them.

    Raises ValueError, before allocating, when the device has too little free memory.
    """

    def __init__(
        self,
        layouts: Sequence[CacheLayout],
        rows: int,
        positions: int,
        device: torch.device | str,
        workspace: int = 0,
    ) -> None:
        check_room(layouts, rows, positions, device, workspace)
        self.layouts = tuple(layouts)
        self.rows = rows
        self.positions = round_up(positions, KEY_CHUNK)
        sizes = [layout.nbytes(rows, self.positions) for layout in self.layouts]
        offsets = _offsets(sizes)
        self.nbytes = offsets[-1] + workspace
        self._storage = torch.zeros(self.nbytes, dtype=torch.uint8, device=device)
        self.caches = [
            self._view(layout, offset, size)
            for layout, offset, size in zip(self.layouts, offsets, sizes, strict=False)
        ]
        self.workspace = self._storage[offsets[-1] :]

    def _view(self, layout: CacheLayout, offset: int, size: int) -> Tensor:
        flat = self._storage[offset : offset + size].view(layout.dtype)
        shape = (layout.layers, 2, layout.kv_heads, self.rows, self.positions, layout.head_dim)
        return flat.view(shape)

    def wipe_if_broken(self, rows: int, positions: int) -> None:
        """Zero the first ``positions`` of the first ``rows`` where a model has written NaN or inf.

        It would poison later sums, through a weight of zero. A token whose key or value is not
        finite in some layer has NaN in the last one, so only that is looked at. A sum of finite
        numbers may overflow: between two calls nothing is lost by a wipe too many.
        """
        for cache in self.caches:
            seen = cache[:, :, :, :rows, :positions]
            if not bool(seen[-1].sum(dtype=torch.float32).isfinite()):
                seen.zero_()


def check_room(
    layouts: Sequence[CacheLayout],
    rows: int,
    positions: int,
    device: torch.device | str,
    workspace: int = 0,
) -> None:
    """Raise ValueError unless ``device`` has memory for the arena of these arguments."""
    if rows < 1 or positions < 1:
        raise ValueError(f"the cache needs at least one row and position, not {rows}, {positions}")
    positions = round_up(positions, KEY_CHUNK)
    needed = _offsets([layout.nbytes(rows, positions) for layout in layouts])[-1] + workspace
    available = available_bytes(torch.device(device))
    if available is not None and needed > available:
        raise ValueError(
            f"the key-value cache and state for {rows} rows of {positions} positions need "
            f"{needed:,} bytes, but {device} has {available:,} available: lower max_batch_size or "
            "max_seq_len"
        )


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where each part begins, aligned, and where the last one ends."""
    offsets = [0]
    for size in sizes:
        offsets.append(round_up(offsets[-1] + size, ALIGNMENT))
    return offsets


def available_bytes(device: torch.device) -> int | None:
    """Free memory of ``device`` in bytes; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo") as lines:
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return sizes["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
