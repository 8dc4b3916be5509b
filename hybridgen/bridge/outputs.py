"""From texts to what transformers' `generate` returns: shapes, padding, scores, streamers."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from hybridgen.engine.loop import Text
from hybridgen.engine.processing import RawLogits
from hybridgen.engine.rounds import Batch

CACHE = next(
    field.name
    for field in fields(GenerateDecoderOnlyOutput)
    if field.name in ("cache", "past_key_values")
)


class Following:
    """Sees the tokens of every text as they come: asks stopping criteria, and feeds a streamer.

    criteria    asked with the padded prompt and all tokens, [1, T], after each token; scores: None
    waits       no row ends by itself, as in transformers where there is no eos: all go on until
                each has stopped
    """

    def __init__(
        self,
        input_ids: Tensor,
        most: int,
        criteria: Sequence[StoppingCriteria],
        streamer: Any,
        waits: bool,
    ) -> None:
        rows, width = input_ids.shape
        self.width, self.criteria, self.streamer, self.waits = width, criteria, streamer, waits
        self.kept = [0] * rows
        self.stopped = [False] * rows
        self.ids = torch.zeros((rows, width + most), dtype=torch.int64, device=input_ids.device)
        self.ids[:, :width] = input_ids

    @property
    def lengths(self) -> list[int]:
        """How many new tokens each row keeps."""
        return [max(self.kept)] * len(self.kept) if self.waits else self.kept

    def __call__(self, text: Text, new: Sequence[int]) -> bool:
        """See `loop.Watcher`."""
        row = text.index
        if not self.criteria and self.streamer is None:
            self.kept[row] = len(text.tokens)
            return False
        first = len(text.tokens) - len(new)
        for i, token in enumerate(new, start=first):
            if self.stopped[row]:
                break
            self.kept[row] = i + 1
            self.ids[row, self.width + i] = token
            if self.streamer is not None:
                self.streamer.put(torch.tensor([token], dtype=torch.int64, device="cpu"))
            ids = self.ids[row : row + 1, : self.width + i + 1]
            self.stopped[row] = any([stops(criterion, ids) for criterion in self.criteria])
        return self.stopped[row] and not self.waits


def stops(criterion: StoppingCriteria, ids: Tensor) -> bool:
    """Whether a criterion says that the row ends."""
    ends: Any = criterion(ids, None)
    return bool(ends.all() if isinstance(ends, Tensor) else ends)


def sequences(
    input_ids: Tensor, texts: Sequence[Text], kept: Sequence[int], pad: Tensor | None
) -> Tensor:
    """Prompts and new tokens, int64 [rows, T], padded at the end as transformers does."""
    longest = max(kept)
    filler = 0 if pad is None else int(pad)
    rows = [
        text.tokens[:count] + [filler] * (longest - count)
        for text, count in zip(texts, kept, strict=True)
    ]
    new = torch.tensor(rows, dtype=input_ids.dtype, device="cpu").to(input_ids.device)
    return torch.cat([input_ids, new.view(len(rows), longest)], dim=1)


class Said:
    """What the models say of each new token of ``rows`` texts: `RawLogits`, taken as texts end."""

    def __init__(self, rows: int, new_tokens: int) -> None:
        self.new_tokens = new_tokens
        self.by_text: list[Tensor | None] = [None] * rows

    def observe(self, batch: Batch) -> RawLogits:
        """What is to see the logits of ``batch``."""
        self.hook = RawLogits.allocate(batch, self.new_tokens)
        return self.hook

    def ended(self, text: Text) -> None:
        """Take those of a text before its row gets another."""
        self.by_text[text.index] = self.hook.of(text)

    def logits(self, kept: Sequence[int]) -> Tensor:
        """[rows, T, V] float32 of the first ``kept`` tokens of each; zeros behind them."""
        found = [said for said in self.by_text if said is not None]
        logits = found[0].new_zeros(len(kept), max(kept), found[0].shape[1])
        for row, (said, count) in enumerate(zip(found, kept, strict=True)):
            logits[row, :count] = said[:count]
        return logits


def scored(
    ids: Tensor, width: int, raw: Tensor, processors: Any, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """What transformers calls scores and logits: a tuple with [rows, V] for each new token.

    ids     int64 [rows, T], the sequences; width of them are prompt
    raw     [rows, T - width, V] float32: what the models said
    wanted  whether scores and logits are

    Scores are computed as transformers does, by all of its processors. A row that has ended has
    zeros for logits.
    """
    steps = range(ids.shape[1] - width)
    logits = tuple(raw[:, i] for i in steps)
    scores = tuple(processors(ids[:, : width + i], logits[i].clone()) for i in steps if wanted[0])
    return (scores if wanted[0] else None), (logits if wanted[1] else None)


def dictionary(ids: Tensor, scores: Any, logits: Any, cache: Any) -> Any:
    """transformers' output of a decoder."""
    made: Any = GenerateDecoderOnlyOutput  # whose annotations are of old tensor types
    return made(sequences=ids, scores=scores, logits=logits, **{CACHE: cache})
