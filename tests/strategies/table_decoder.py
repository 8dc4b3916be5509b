"""A decoder whose distribution can be written down: logits are a table of the last two tokens.

Its cache is real: it remembers the tokens it was fed by position, and looks the previous one up
there. A strategy that forgets to feed a token, or trusts a rejected one, gets other logits.
"""

from itertools import product

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hybridgen.engine.loop import Program, run
from hybridgen.engine.state import State


class TableDecoder:
    """table[previous, last] are the logits of the next token, [V, V, V]."""

    def __init__(self, table: Tensor, rows: int, positions: int) -> None:
        self.table = table
        self.vocab_size = table.shape[-1]
        self.cache = torch.full((rows, positions), -1)

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        positions = (start[:, None] + torch.arange(tokens.shape[1])).clamp_min(0)
        self.cache[: len(tokens)].scatter_(1, positions, tokens)
        previous = self.cache.gather(1, (positions - 1).clamp_min(0))
        assert bool((previous >= 0).all()), "a token was never fed"
        return self.table[previous, tokens]

    def prefill(self, prompt: list[int]) -> None:
        self.cache[:, : len(prompt) - 1] = torch.tensor(prompt[:-1])


def random_table(vocab: int, seed: int, like: Tensor | None = None, noise: float = 1.0) -> Tensor:
    """Logits of spread 1.5, or those of ``like`` disturbed, as a draft's are."""
    generator = torch.Generator().manual_seed(seed)
    table = 1.5 * torch.randn(vocab, vocab, vocab, generator=generator)
    return table if like is None else like + noise * table


def filtered(logits: np.ndarray, sampling: tuple[float, float, float, float]) -> np.ndarray:
    """The distribution after temperature, top-k, top-p, min-p in float64, ties kept together."""
    temperature, top_k, top_p, min_p = sampling
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp((logits - logits.max()) / temperature)
    if top_k:
        p = np.where(p >= np.sort(p)[-min(int(top_k), len(p))], p, 0)
    p /= p.sum()
    order = np.sort(p)[::-1]
    before = np.cumsum(order) - order
    p = np.where(p >= order[before < top_p].min(), p, 0)
    p = np.where(p >= min_p * p.max(), p, 0)
    return p / p.sum()


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
    state: State, program: Program, prompt: list[int], depth: int, vocab: int
) -> np.ndarray:
    """How often each continuation was written, over the rows of a loaded state."""
    run(state, program, ())
    new = state.tokens[:, len(prompt) : len(prompt) + depth]
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
