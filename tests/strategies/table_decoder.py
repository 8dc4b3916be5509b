"""A decoder whose distribution can be written down: logits are a table of the last two tokens.

Its cache is real: it remembers the tokens it was fed by position, and looks the previous one up
there. A strategy that forgets to feed a token, or trusts a rejected one, gets other logits.
"""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hybridgen.engine.cache import CacheLayout
from hybridgen.engine.loop import Program, Text, Watcher, run
from hybridgen.engine.model import Model
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch


class TableDecoder:
    """table[previous, last] are the logits of the next token, [V, V, V]."""

    device, dtype, max_positions = torch.device("cpu"), torch.float32, 1 << 20

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.vocab_size = table.shape[-1]

    def cache_layout(self) -> CacheLayout:
        return CacheLayout(layers=1, kv_heads=1, head_dim=1, dtype=torch.float32)

    def bind(self, cache: Tensor) -> None:
        """It keeps each id plus 1: what was never fed is 0."""
        self.fed = cache[0, 0, 0, :, :, 0]

    def prefill(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        for i, (row, length) in enumerate(zip(rows or range(len(lengths)), lengths, strict=True)):
            first = starts[i] if starts else 0
            self.fed[row, first:length] = tokens[i, first:length] + 1.0

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        positions = (start[:, None] + torch.arange(tokens.shape[1])).clamp_min(0)
        self.fed[: len(tokens)].scatter_(1, positions, tokens + 1.0)
        previous = self.fed[: len(tokens)].gather(1, (positions - 1).clamp_min(0)).long() - 1
        assert bool((previous >= 0).all()), "a token was never fed"
        return self.table[previous, tokens]


if TYPE_CHECKING:  # a model for the rounds as much as the native decoder is
    from hybridgen.engine.decoder import Decoder

    def models(table: TableDecoder, native: Decoder) -> tuple[Model, Model]:
        return table, native


def loaded(
    slm: Model | None,
    llm: Model,
    prompts: Sequence[Sequence[int]],
    depth: int,
    sampling: tuple[float, float, float, float],
) -> Batch:
    """Rows with the seeds 7, 8, ... that end after ``depth`` tokens; the models have read them."""
    count, longest = len(prompts), max(map(len, prompts))
    batch = Pair(slm, llm, count, longest + depth).batch(count)
    limits = [len(prompt) + depth for prompt in prompts]
    batch.rows.load(prompts, limits, range(7, 7 + count), sampling, [])
    for model in (slm, llm) if slm is not None else (llm,):
        model.prefill(batch.rows.tokens, [len(prompt) - 1 for prompt in prompts])
    return batch


def write(batch: Batch, program: Program, watchers: Sequence[Watcher] = ()) -> list[Text]:
    """Run ``program`` until all rows, which have been loaded, are done."""
    rows = batch.rows
    loaded = zip(rows.length.tolist(), rows.limit.tolist(), rows.seed.tolist(), strict=True)
    texts = [
        Text(row, rows.tokens[row, :length].tolist(), limit, seed)
        for row, (length, limit, seed) in enumerate(loaded)
    ]
    run(batch, program, texts, lambda placed: None, watchers)
    return texts


def random_table(vocab: int, seed: int, like: Tensor | None = None, noise: float = 1.0) -> Tensor:
    """Logits of spread 1.5, or those of ``like`` disturbed, as a draft's are."""
    generator = torch.Generator().manual_seed(seed)
    table = 1.5 * torch.randn(vocab, vocab, vocab, generator=generator)
    return table if like is None else like + noise * table


def filtered(logits: np.ndarray, sampling: tuple[float, float, float, float]) -> np.ndarray:
    """The distribution after temperature, top-k, top-p, min-p in float64, ties kept together."""
    temperature, top_k, top_p, min_p = sampling
    p: np.ndarray = np.eye(len(logits))[logits.argmax()]
    if temperature == 0:
        return p
    p = np.exp((logits - logits.max()) / temperature)
    if top_k:
        p = np.where(p >= np.sort(p)[-min(int(top_k), len(p))], p, 0)
    p /= p.sum()
    order = np.sort(p)[::-1]
    before = np.cumsum(order) - order
    p = np.where(p >= order[before < top_p].min(), p, 0)
    p = np.where(p >= min_p * p.max(), p, 0)
    p /= p.sum()
    return p


def enumerate_law(
    table: Tensor, prompt: list[int], depth: int, sampling: tuple[float, float, float, float]
) -> np.ndarray:
    """The probability of each of the V ** depth continuations, in lexicographic order."""
    vocab = table.shape[-1]
    law = np.empty(vocab**depth)
    rows = {
        key: filtered(table[key].double().numpy(), sampling)
        for key in product(range(vocab), range(vocab))
    }
    for index, text in enumerate(product(range(vocab), repeat=depth)):
        history, probability = (prompt[-2], prompt[-1]), 1.0
        for token in text:
            probability *= rows[history][token]
            history = (history[1], token)
        law[index] = probability
    return law


def sample_law(
    batch: Batch, program: Program, prompt: list[int], depth: int, vocab: int
) -> np.ndarray:
    """How often each continuation was written, over the rows of a loaded batch."""
    write(batch, program)
    new = batch.rows.tokens[:, len(prompt) : len(prompt) + depth]
    index = (new * vocab ** torch.arange(depth - 1, -1, -1)).sum(1)
    return torch.bincount(index, minlength=vocab**depth).numpy()


def p_value(observed: np.ndarray, law: np.ndarray) -> float:
    """Chi-square of counts against a law; cells expected fewer than 10 times are pooled."""
    assert observed[law == 0].sum() == 0, "an impossible text was written"
    expected = law * observed.sum()
    rare = expected < 10
    if rare.any() and expected[rare].sum() > 0:
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    else:
        observed, expected = observed[~rare], expected[~rare]
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)
