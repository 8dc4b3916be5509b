"""What lives on the device while text is written, at addresses that never change.

The tensors fall apart by who uses them: `Rows` are the texts themselves and belong to every round,
`Drafts` to speculation, `Routing` to token routing. Each is allocated once, for the largest batch
and the most drafts; a request works on views of the first rows, a round on views of the first
drafts. So a captured round keeps pointing at the right memory, whatever came between. One request
runs at a time, and loads what it uses: what is left of the last one does not matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from hybridgen.engine.adjustment import Adjustment
from hybridgen.engine.cache import ALIGNMENT, round_up
from hybridgen.engine.kept import Kept
from hybridgen.engine.limits import MAX_EOS
from hybridgen.engine.model import Model
from hybridgen.kernels.verify import HEAD, LENGTH, PENDING, WINDOW

QUANTILE_WINDOW = 128


class Memory:
    """Tensors laid out one after the other: in ``block``, uint8 [bytes], whatever it holds; without
    one, in memory of their own. ``used`` are the bytes so far; the device may be "meta"."""

    def __init__(self, device: torch.device, block: Tensor | None = None) -> None:
        self.device, self.block, self.used = device, block, 0

    def tensor(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        first, size = self.used, math.prod(shape) * dtype.itemsize
        self.used += round_up(size, ALIGNMENT)
        if self.block is None:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        return self.block[first : first + size].view(dtype).view(shape)


class Forward(NamedTuple):
    """A call of ``model`` whose logits a hook sees.

    drafted    some tokens may be drafts; else they are the text's own, and what the logits say of
               places behind its end is of no interest
    """

    rows: "Rows"
    model: Model
    tokens: Tensor  # [B, M] int64
    start: Tensor  # [B] int64: where the first of them are
    drafted: bool


class Hook(Protocol):
    """What `steps.read` calls with the logits of every model."""

    def start(self, adjustment: Adjustment, placed: Sequence[tuple[int, Any]]) -> None:
        """Texts (see `loop.Text`) have been put into rows."""
        ...

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """What to go on with in place of the forward's ``logits`` [B, M, V]."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """B texts of at most T tokens.

    ``kept`` is where a recorder keeps what is known of drafts. ``hooks`` change what models say
    before tokens are drawn from it (see `hybridgen.engine.processing`).
    """

    vocab_size: int  # of the LLM: committed ids are below it

    tokens: Tensor  # [B, T] int64: the prompt, then what was committed
    length: Tensor  # [B] int64: committed tokens
    limit: Tensor  # [B] int64: the length at which the row ends
    done: Tensor  # [B] bool
    report: Tensor  # [B, HEAD + WINDOW] int64: what the host reads of a round, see `verify.commit`
    seed: Tensor  # [B] int64
    sampling: Tensor  # [B, 4] float64: temperature, top-k, top-p, min-p
    eos: Tensor  # [B, MAX_EOS] int64, padded with -1
    kept: Kept | None = None
    hooks: tuple[Hook, ...] = ()

    @classmethod
    def allocate(cls, memory: Memory, rows: int, positions: int, vocab_size: int) -> "Rows":
        return cls(
            vocab_size=vocab_size,
            tokens=memory.tensor(rows, positions),
            length=memory.tensor(rows),
            limit=memory.tensor(rows),
            done=memory.tensor(rows, dtype=torch.bool),
            report=memory.tensor(rows, HEAD + WINDOW),
            seed=memory.tensor(rows),
            sampling=memory.tensor(rows, 4, dtype=torch.float64),
            eos=memory.tensor(rows, MAX_EOS),
        )

    def first(self, rows: int) -> "Rows":
        """Views of the first ``rows`` rows."""
        return _first(self, rows)

    @cached_property
    def pending(self) -> Tensor:
        """What a round leaves of each row for the host: [B] int64, a view of ``report``."""
        return self.report[:, PENDING]

    def rest(self) -> None:
        """No row has anything to write: rounds may run, and nothing that is committed changes."""
        self.done.fill_(True)
        self.length.fill_(1)
        self.tokens[:, :1].zero_()

    def load(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: tuple[float, float, float, float],
        eos: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> None:
        """Start texts in ``rows``, or in all: others may go on being written.

        prompts[i] are the token ids of the i-th, limits[i] the length it may reach.
        """
        ends = [*eos] + [-1] * (MAX_EOS - len(eos))
        width = max(len(prompt) for prompt in prompts)
        packed = [
            [row, len(prompt), limit, seed, *ends, *_first_report(len(prompt)), *prompt]
            + [0] * (width - len(prompt))
            for row, prompt, limit, seed in zip(
                rows or range(len(prompts)), prompts, limits, seeds, strict=True
            )
        ]
        # One copy to the device for all of it: others are being written meanwhile.
        device = self.tokens.device
        sizes = [1, 1, 1, 1, MAX_EOS, HEAD + WINDOW, width]
        place, *numbers, last, report, tokens = moved(integers(packed), device).split(sizes, 1)
        index = place[:, 0]
        for kept, column in zip((self.length, self.limit, self.seed), numbers, strict=True):
            kept.index_copy_(0, index, column[:, 0])
        self.tokens[:, :width].index_copy_(0, index, tokens)
        self.eos.index_copy_(0, index, last)
        self.report.index_copy_(0, index, report)
        values = torch.tensor([sampling], dtype=torch.float64, device="cpu")
        self.sampling.index_copy_(0, index, moved(values, device).expand(len(packed), 4))
        self.done.index_fill_(0, index, False)


class Step(NamedTuple):
    """Where one draft of each row goes: views of `Drafts`."""

    position: Tensor  # [B] int64: of the draft
    token: Tensor  # [B] int64
    fed: Tensor  # [B, 1] int64: the same, as a model reads it
    truncation: Tensor  # [B, 3] float32
    q: Tensor | None  # [B, V]


@dataclass(frozen=True, eq=False)
class Drafts:
    """K drafts of B rows, from whoever proposes them: all that verification asks for.

    ``q`` is None where the drafts need no distribution: coupled and greedy verification.
    """

    ends: Tensor  # [B, 2] int64: the last two committed tokens
    block: Tensor  # [B, K + 1] int64: the last committed token, then the drafts: the LLM reads it
    tokens: Tensor  # [B, K] int64: the drafts, a view of ``block``
    q: Tensor | None  # [B, K, V]: the logits that they were drawn from, V at most the LLM's
    truncation: Tensor  # [B, K, 3] float32: what makes those logits a distribution, see `sample`
    positions: Tensor  # [K + 2, B] int64: of the last two committed tokens and of the drafts
    dtype: torch.dtype  # of the drafting model's logits

    @classmethod
    def allocate(
        cls, memory: Memory, rows: int, drafts: int, vocab_size: int, dtype: torch.dtype
    ) -> "Drafts":
        """``vocab_size`` and ``dtype`` of the drafting model's logits."""
        block = memory.tensor(rows, drafts + 2)
        return cls(
            ends=block[:, :2],
            block=block[:, 1:],
            tokens=block[:, 2:],
            q=memory.tensor(rows, drafts, vocab_size, dtype=torch.float32),
            truncation=memory.tensor(rows, drafts, 3, dtype=torch.float32),
            positions=memory.tensor(drafts + 2, rows),
            dtype=dtype,
        )

    def first(self, rows: int) -> "Drafts":
        """Views of the first ``rows`` rows."""
        return replace(_first(self, rows), positions=self.positions[:, :rows])

    def take(self, drafts: int, with_q: bool, adjusted: bool = False) -> "Drafts":
        """Views of the first ``drafts`` drafts; adjusted logits are float32, whatever the model's.

        The other dtype is a view of the same memory.
        """
        q = None
        if with_q and self.q is not None:
            q = self.q
            if not adjusted and self.dtype != q.dtype:
                q = q.view(-1).view(self.dtype)[: q.numel()].view(q.shape)
            q = q[:, :drafts]
        return Drafts(
            ends=self.ends,
            block=self.block[:, : drafts + 1],
            tokens=self.tokens[:, :drafts],
            q=q,
            truncation=self.truncation[:, :drafts],
            positions=self.positions[: drafts + 2],
            dtype=self.dtype,
        )

    @cached_property
    def starts(self) -> tuple[Tensor, Tensor]:
        """Where ``ends`` begins, and ``block``: [B] int64 each."""
        return self.positions[0], self.positions[1]

    @cached_property
    def none(self) -> Tensor:
        """No drafts: [B, 0] int64."""
        return self.tokens[:, :0]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """One draft after the other."""
        count = self.tokens.shape[1]
        return tuple(
            Step(
                self.positions[i + 2],
                self.tokens[:, i],
                self.tokens[:, i : i + 1],
                self.truncation[:, i],
                None if self.q is None else self.q[:, i],
            )
            for i in range(count)
        )


@dataclass(frozen=True, eq=False)
class Routing:
    """Whose turn it is in each of B rows, and how that is decided."""

    routed: Tensor  # [B] bool: the row's next token is the LLM's
    llm_cached: Tensor  # [B] int64: leading tokens whose K/V the LLM holds
    threshold: Tensor  # [B] float32
    rate: Tensor  # [B] float32: the share of decisions that a moving threshold is to route
    metrics: Tensor  # [B, QUANTILE_WINDOW] float32: the last metrics, -inf where unseen
    decisions: Tensor  # [B, 2] int64: decisions taken, and those of them that routed

    @classmethod
    def allocate(cls, memory: Memory, rows: int) -> "Routing":
        f32 = torch.float32
        return cls(
            routed=memory.tensor(rows, dtype=torch.bool),
            llm_cached=memory.tensor(rows),
            threshold=memory.tensor(rows, dtype=f32),
            rate=memory.tensor(rows, dtype=f32),
            metrics=memory.tensor(rows, QUANTILE_WINDOW, dtype=f32),
            decisions=memory.tensor(rows, 2),
        )

    def first(self, rows: int) -> "Routing":
        """Views of the first ``rows`` rows."""
        return _first(self, rows)

    def load(
        self, texts: Rows, threshold: float, rate: float, rows: Sequence[int] | None = None
    ) -> None:
        """Start the texts of ``rows``, or all; the LLM has read their prompts but for a token."""
        every = range(len(self.routed)) if rows is None else rows
        index = moved(integers([*every]), self.routed.device)
        self.routed.index_fill_(0, index, False)
        self.llm_cached.index_copy_(0, index, texts.length.index_select(0, index) - 1)
        self.threshold.index_fill_(0, index, threshold)
        self.rate.index_fill_(0, index, rate)
        self.metrics.index_fill_(0, index, float("-inf"))
        self.decisions.index_fill_(0, index, 0)


Part = TypeVar("Part", Rows, Drafts, Routing)


def _first(part: Part, rows: int) -> Part:
    views: dict[str, Any] = {
        name: value[:rows] for name, value in vars(part).items() if isinstance(value, Tensor)
    }
    return replace(part, **views)


def _first_report(length: int) -> list[int]:
    report = [0] * (HEAD + WINDOW)
    report[LENGTH] = length
    return report


def integers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``; nothing waits for the copy."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
