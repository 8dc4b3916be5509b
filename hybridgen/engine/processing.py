"""Logits between a model and the draw: the hooks of `steps.read`.

A hook is called with all logits that a model computes, and returns what tokens are to be drawn
from. `Penalties` is an op on the device, and part of a captured round; `Functions` asks a caller's
own functions, on the host, so its rounds cannot be captured; `RawLogits` keeps what models said. A
batch with hooks is a variant of the batch without: it has rounds of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hybridgen.checks import shown
from hybridgen.engine.adjustment import Adjustment, RowFunction, is_llms
from hybridgen.engine.loop import Placed, Text
from hybridgen.engine.model import Model
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Forward, integers, moved
from hybridgen.kernels.penalties import penalize


def adjusted(batch: Batch, adjustment: Adjustment) -> Batch:
    """``batch`` with logits adjusted so: the same object for the same kind of adjustment.

    With functions it is a new one, whose rounds are not captured.
    """
    if adjustment.on_device:
        kind = Kind(adjustment.repetition_penalty != 1, adjustment.no_repeat_ngram_size > 0)
        batch = batch.own(kind)
    if adjustment.functions:
        batch = batch.hooked(Functions(batch.width, batch.llm), captured=False)
    return batch


def write(forward: Forward) -> None:
    """Put a forward's drafts where tokens are read.

    What adjusts a draft's logits must see the drafts before it. Behind a row's end nobody else
    looks.
    """
    if not forward.drafted:
        return
    rows, tokens, start = forward.rows, forward.tokens, forward.start
    column = torch.arange(tokens.shape[1], dtype=torch.int64, device=tokens.device)
    place = (start[:, None] + column).clamp(0, rows.tokens.shape[1] - 1)
    rows.tokens.scatter_(1, place, tokens)


@dataclass(frozen=True)
class Kind:
    """What a round of `Penalties` is made for; called with a batch, its variant with them."""

    repetition: bool
    ngram: bool

    def __call__(self, batch: Batch) -> Batch:
        return batch.hooked(Penalties.allocate(batch, self))


@dataclass(eq=False)
class Penalties:
    """An `Adjustment` but for its functions, on the device; see `kernels.penalties`."""

    front: Tensor  # [B, 3] int64: tokens in front of position 0, which, where repetition begins
    bias: Tensor  # [V] float32
    early: Tensor  # [V] float32: added where fewer tokens than the minimum are written
    minimum: Tensor  # [B] int64: length from which it is not
    repetition: Tensor | None  # [1] float32
    ngram: Tensor | None  # [1] int64
    loaded: Adjustment | None = None

    @classmethod
    def allocate(cls, batch: Batch, kind: Kind) -> "Penalties":
        rows, device = batch.width, batch.rows.length.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        vocab_size = batch.rows.vocab_size
        return cls(
            front=zeros(rows, 3),
            bias=zeros(vocab_size, dtype=torch.float32),
            early=zeros(vocab_size, dtype=torch.float32),
            minimum=zeros(rows),
            repetition=zeros(1, dtype=torch.float32) if kind.repetition else None,
            ngram=zeros(1) if kind.ngram else None,
        )

    def start(self, adjustment: Adjustment, placed: Placed) -> None:
        """Load what is asked for of the texts that have been put into rows."""
        if self.loaded is not adjustment:
            self._load(adjustment)
        numbers = []
        for row, text in placed:
            front = adjustment.fronts[text.index] if adjustment.fronts else ()
            counted = adjustment.counted[text.index] if adjustment.counted else 0
            minimum = len(text.prompt) + adjustment.min_new_tokens
            numbers.append([row, minimum, len(front), front[0] if front else 0, counted])
        table = moved(integers(numbers), self.front.device)
        self.minimum.index_copy_(0, table[:, 0], table[:, 1])
        self.front.index_copy_(0, table[:, 0], table[:, 2:])

    def _load(self, adjustment: Adjustment) -> None:
        self.bias.zero_()
        self.early.zero_()
        known = {i: value for i, value in adjustment.bias.items() if i < len(self.bias)}
        ends = [i for i in adjustment.ends if i < len(self.early)]
        device = self.bias.device
        if known:
            values = torch.tensor([*known.values()], dtype=torch.float32, device="cpu")
            self.bias.index_copy_(0, moved(integers([*known]), device), moved(values, device))
        if ends:
            self.early.index_fill_(0, moved(integers(ends), device), float("-inf"))
        if self.repetition is not None:
            self.repetition.fill_(adjustment.repetition_penalty)
        if self.ngram is not None:
            self.ngram.fill_(adjustment.no_repeat_ngram_size)
        self.loaded = adjustment

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """See `state.Hook`."""
        write(forward)
        scores: Tensor = penalize(
            logits,
            forward.rows.tokens,
            forward.start,
            self.front,
            self.bias,
            self.early,
            self.minimum,
            self.repetition,
            self.ngram,
        )
        return scores


class Functions:
    """The functions of an `Adjustment`: each row and position that a token is drawn at, by itself.

    Raises TypeError where one does not return scores of the shape that it was given.
    """

    def __init__(self, rows: int, llm: Model) -> None:
        self.llm = llm
        self.functions: Sequence[RowFunction] = ()
        self.texts: list[int | None] = [None] * rows
        self.fronts: list[tuple[int, ...]] = [()] * rows

    def start(self, adjustment: Adjustment, placed: Placed) -> None:
        """Remember which texts have been put into which rows."""
        self.functions = adjustment.functions
        for row, text in placed:
            self.texts[row] = text.index
            self.fronts[row] = adjustment.fronts[text.index] if adjustment.fronts else ()

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """See `state.Hook`."""
        write(forward)
        logits = logits.to(torch.float32, copy=True)
        rows, tokens = forward.rows, forward.tokens
        functions = [f for f in self.functions if forward.model is self.llm or not is_llms(f)]
        for row, column, length in self._asked(forward):
            text = self.texts[row]
            assert text is not None, "a row that nobody loaded is being written"
            front = torch.tensor([self.fronts[row]], dtype=torch.int64, device=tokens.device)
            ids = torch.cat([front, rows.tokens[row : row + 1, :length]], dim=1)
            scores: Any = logits[row, column : column + 1]
            for function in functions:
                changed = function(text, ids, scores)
                if not isinstance(changed, Tensor) or changed.shape != scores.shape:
                    raise TypeError(
                        "logits_processor must return the scores that it was given, changed: a "
                        f"tensor of shape {tuple(scores.shape)}, got "
                        f"{tuple(changed.shape) if isinstance(changed, Tensor) else shown(changed)}"
                    )
                scores = changed
            logits[row, column] = scores[0]
        return logits

    def _asked(self, forward: Forward) -> list[tuple[int, int, int]]:
        """Rows and columns whose token is yet to be drawn, with how many tokens are before it."""
        rows, drafted = forward.rows, forward.drafted
        table = torch.stack([forward.start, rows.length, rows.limit, rows.done.long()], 1).tolist()
        return [
            (row, column, first + column + 1)
            for row, (first, length, limit, done) in enumerate(table)
            for column in range(forward.tokens.shape[1])
            if not done and length <= first + column + 1 < (limit if drafted else length + 1)
        ]


@dataclass(eq=False)
class RawLogits:
    """The logits that each new token was drawn from, as the model said them.

    Of the models that are asked about a token it keeps the last one's: that one decides.
    """

    kept: Tensor  # [B, N + 1, V] float32: of the i-th new token; the last is for what nobody wants
    prompt: Tensor  # [B] int64: tokens of the prompt
    rows: dict[int, int] = field(default_factory=dict)  # of each text

    @classmethod
    def allocate(cls, batch: Batch, new_tokens: int) -> "RawLogits":
        shape = batch.width, new_tokens + 1, batch.rows.vocab_size
        device = batch.rows.length.device
        return cls(
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros_like(batch.rows.length),
        )

    def start(self, adjustment: Adjustment, placed: Placed) -> None:
        """Remember where the new tokens of the texts begin that have been put into rows."""
        self.rows |= {text.index: row for row, text in placed}
        table = moved(integers([[row, len(text.prompt)] for row, text in placed]), self.kept.device)
        self.prompt.index_copy_(0, table[:, 0], table[:, 1])

    def of(self, text: Text) -> Tensor:
        """A copy of those of a text's tokens, [N, V], as long as it has its row."""
        return self.kept[self.rows[text.index], : len(text.tokens)].clone()

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """See `state.Hook`."""
        rows, start = forward.rows, forward.start
        batch, columns, vocab_size = logits.shape
        column = torch.arange(1, columns + 1, dtype=torch.int64, device=logits.device)
        position = start[:, None] + column
        nobodys = position < rows.length[:, None]
        if not forward.drafted:
            nobodys |= position > rows.length[:, None]
        last = self.kept.shape[1] - 1
        place = torch.where(nobodys, last, position - self.prompt[:, None]).clamp(0, last)
        index = place[:, :, None].expand(batch, columns, vocab_size)
        self.kept.scatter_(1, index, logits.float())
        return logits
