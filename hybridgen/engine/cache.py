"""Preallocated key-value arenas for the models of a pair, one on each device.

They are allocated once and never grow, so addresses are fixed (a captured graph may replay over
them) and no call allocates per token. They keep no length: a decoder is told where to write.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgen.engine.host_memory import untouched_zeros
from hybridgen.engine.limits import MAX_FEED
from hybridgen.engine.room import Demand, Needs, check_room, indexed
from hybridgen.kernels.attention import KEY_CHUNK

ALIGNMENT = 16


@dataclass(frozen=True)
class CacheLayout:
    """What one model keeps per position: a key and a value for each layer and key head.

    device   where it keeps them; None: with the pair's state
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device | None = None

    def nbytes(self, rows: int, positions: int) -> int:
        """Bytes for ``rows`` sequences of ``positions`` positions."""
        numbers = self.layers * 2 * self.kv_heads * rows * positions * self.head_dim
        return numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Footprint:
    """What one model takes of a device: weights in bytes, cache, and the logits of a row."""

    layout: CacheLayout
    weights: int = 0
    logits: int = 0

    @classmethod
    def of(
        cls, layout: CacheLayout, weights: int, vocab_size: int, dtype: torch.dtype
    ) -> "Footprint":
        """With the logits of the widest forward, of the last draft and all before it."""
        return cls(layout, weights, MAX_FEED * vocab_size * dtype.itemsize)


def demand(
    footprints: Iterable[Footprint],
    rows: int,
    positions: int,
    home: torch.device | str,
    state: int = 0,
) -> Demand:
    """What models of these footprints take of each device, for ``rows`` rows of ``positions``.

    ``state`` bytes are the rounds', on the device ``home``.
    """
    home = indexed(torch.device(home))
    needed = {home: Needs(state=state)}
    for one in footprints:
        device = indexed(one.layout.device or home)
        cache = round_up(one.layout.nbytes(rows, round_up(positions, KEY_CHUNK)), ALIGNMENT)
        own = Needs(weights=one.weights, cache=cache, scratch=rows * one.logits)
        needed[device] = needed.get(device, Needs()).plus(own)
    return needed


class Arena:
    """The zero-filled caches of several models, in one allocation on each device.

    ``caches[i]`` is a view [layers, 2 (key, value), kv_heads, rows, positions, head_dim] for
    ``layouts[i]``. ``positions`` is rounded up to whole chunks of `KEY_CHUNK` keys. ``workspace``,
    uint8 [workspace bytes], lies beside those on ``device``.

    Raises ValueError, before allocating, when a device has too little free memory.
    """

    def __init__(
        self,
        layouts: Sequence[CacheLayout],
        rows: int,
        positions: int,
        device: torch.device | str,
        workspace: int = 0,
    ) -> None:
        home = indexed(torch.device(device))
        needed = demand(map(Footprint, layouts), rows, positions, home, workspace)
        check_room(needed, rows, positions)
        self.layouts = tuple(layouts)
        self.rows = rows
        self.positions = round_up(positions, KEY_CHUNK)
        self.nbytes = sum(needs.total for needs in needed.values())
        self._storages = {
            place: untouched_zeros(needs.total)
            if place.type == "cpu"
            else torch.zeros(needs.total, dtype=torch.uint8, device=place)
            for place, needs in needed.items()
        }
        used = dict.fromkeys(needed, 0)
        self.caches = []
        for layout in self.layouts:
            place = indexed(layout.device or home)
            self.caches.append(self._view(layout, self._storages[place], used[place]))
            used[place] = round_up(used[place] + self.caches[-1].nbytes, ALIGNMENT)
        self.workspace = self._storages[home][used[home] :]

    def _view(self, layout: CacheLayout, storage: Tensor, offset: int) -> Tensor:
        size = layout.nbytes(self.rows, self.positions)
        flat = storage[offset : offset + size].view(layout.dtype)
        shape = (layout.layers, 2, layout.kv_heads, self.rows, self.positions, layout.head_dim)
        return flat.view(shape)

    def wipe_if_broken(self, rows: int, positions: int) -> bool:
        """Zero the first ``positions`` of the first ``rows`` where a model has written NaN or inf.

        It would poison later sums, through a weight of zero. A token whose key or value is not
        finite in some layer has NaN in the last one, so only that is looked at. A sum of finite
        numbers may overflow: between two calls nothing is lost by a wipe too many. Returns whether
        there was one.
        """
        wiped = False
        for cache in self.caches:
            seen = cache[:, :, :, :rows, :positions]
            if not bool(seen[-1].sum(dtype=torch.float32).isfinite()):
                seen.zero_()
                wiped = True
        return wiped


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
