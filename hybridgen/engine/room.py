"""What a pair takes of each device: refused before it is allocated, explained where it fails."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Needs:
    """Bytes that a pair takes of one device, as predicted.

    weights  of the models there
    cache    keys and values
    state    of the rounds
    scratch  the least that the widest forward takes beside them: its logits
    """

    weights: int = 0
    cache: int = 0
    state: int = 0
    scratch: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.state + self.scratch

    def plus(self, other: "Needs") -> "Needs":
        """Both together; one forward runs at a time."""
        return Needs(
            self.weights + other.weights,
            self.cache + other.cache,
            self.state + other.state,
            max(self.scratch, other.scratch),
        )

    def on(self, device: torch.device) -> str:
        """In words; what is 0 or not known yet is left out."""
        parts = {"weights": self.weights, "key-value cache": self.cache}
        parts |= {"state of the rounds": self.state, "scratch, at least": self.scratch}
        listed = ", ".join(f"{name} {size:,}" for name, size in parts.items() if size)
        return f"{self.total:,} bytes of {device} ({listed})"


Demand = Mapping[torch.device, Needs]
LOWER = "lower max_batch_size or max_seq_len, or take a smaller dtype"


def check_room(demand: Demand, rows: int, positions: int) -> None:
    """Raise ValueError unless every device has free what ``demand`` asks of it.

    ``rows`` and ``positions`` are what the caller asked for, for the message.
    """
    if rows < 1 or positions < 1:
        raise ValueError(f"the cache needs at least one row and position, not {rows}, {positions}")
    for device, needs in demand.items():
        available = available_bytes(device)
        if available is not None and needs.total > available:
            raise ValueError(
                f"{rows} rows of {positions} positions need {needs.on(device)}, of which "
                f"{available:,} are available: {LOWER}"
            )


@contextmanager
def explained(demand: Callable[[], Demand]) -> Iterator[None]:
    """Let an out-of-memory error of torch's say what was to take how much, and what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = " and ".join(needs.on(device) for device, needs in demand().items())
        raise torch.OutOfMemoryError(
            f"out of memory, where {needed} were predicted: {LOWER}. torch says: {error}"
        ) from error


def indexed(device: torch.device) -> torch.device:
    """The device with its number: "cuda" is the current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)


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
