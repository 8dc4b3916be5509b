"""How unsure a model is of its next token: entropy, and LogTokU's two numbers.

Entropy at a temperature, in nats, over the whole vocabulary (no filter):

    H = -sum p log p = log Z - sum p * x,    x = logit / T - max,    Z = sum exp(x),

and 0 at temperature 0, where the distribution is one token.

LogTokU (Ma et al. 2025, "Estimating LLM uncertainty with evidence") reads the largest k logits (all
of them where the vocabulary has fewer) as evidence of a Dirichlet distribution: with alpha the
evidence, S its sum and psi the digamma function,

    aleatoric   AU = -sum (alpha / S) * (psi(alpha + 1) - psi(S + 1))     spread among the tokens
    epistemic   EU = k / (S + k)                                        lack of evidence for any

The paper's evidence is the raw logits, here clamped at 0 (digamma has poles below); AU then hardly
moves, and not with doubt. The default for AU is the k largest probabilities, renormalised, S = 1:
softmax(the k largest logits), in which the rest of the vocabulary has no part. That AU is divided
by its maximum, psi(2) - psi(1 + 1 / k), so that 0 is sure and 1 is k equal candidates; it grows
whenever probability moves from a likelier candidate to a less likely one. One candidate alone
(k = 1, or a vocabulary of 1) leaves no doubt to measure: 0.

EU always reads the clamped logits: from probabilities it is a constant. No evidence at all, S = 0,
is AU = 0 (the limit) and EU = 1.

`sample_measured` draws as `sample` does and measures the same logits on the way.

Shapes: logits [R, V] float32, bfloat16 or float16, any row stride, V up to `weights.MAX_VOCAB`;
results float32 [R]. A broken row (any NaN, any +inf, or nothing but -inf) gives NaN. The inputs are
read only.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.registry import define
from hybridgen.kernels.sampling import (
    LOG_Z,
    Bools,
    Doubles,
    Floats,
    Parameters,
    float_rows,
    parameters,
    sample_rows,
)
from hybridgen.kernels.weights import bounded

PROBS, LOGITS = 0, 1
EVIDENCE = {"probs": PROBS, "logits": LOGITS}
"""Evidence of AU: the k largest probabilities (temperature 1, renormalised), or logits."""

LOGPROB, FULL_LOGPROB, ENTROPY, ALEATORIC, EPISTEMIC = range(5)
"""Columns of what `sample_measured` measures: log-probability of the token in the filtered
distribution and in softmax(logits), entropy of softmax(logits), AU and EU."""
MEASURES = 5

_UNDERFLOW = -1000.0
_PSI_2 = float(torch.digamma(torch.tensor([2.0], dtype=torch.float64, device="cpu")))


def _usable(rows: Floats) -> tuple[Floats, Floats, Bools]:
    """Rows, their maxima [R, 1], and which are broken, [R]; those are replaced by zeros."""
    largest = rows.max(axis=1, keepdims=True)
    broken = ~np.isfinite(largest[:, 0])
    if broken.any():
        rows, largest = np.where(broken[:, None], 0, rows), np.where(broken[:, None], 0, largest)
    return rows, largest, broken


def _entropy_and_mass(x: Floats) -> tuple[Floats, Floats]:
    """Entropy and sum of exp(x), [R], of x [R, V] <= 0, which is overwritten."""
    np.maximum(x, _UNDERFLOW, out=x)  # exp is 0 there too, and 0 * -inf is not
    weight = np.exp(x)
    mass: Floats = weight.sum(axis=1)
    return np.log(mass) - np.einsum("rv,rv->r", weight, x) / mass, mass


def entropy_reference(logits: Tensor, temperature: Tensor) -> Tensor:
    """Entropy in nats, float32 [R], of softmax(logits [R, V] / temperature [R], of any dtype)."""
    rows, largest, broken = _usable(float_rows(logits))
    t = temperature.numpy()
    heat = bounded(np.where(t > 0, t, 1)).astype(np.float32)[:, None]
    with np.errstate(over="ignore"):  # -inf is as good as any other number below `_UNDERFLOW`
        x = (rows - largest) / heat
    entropy, _ = _entropy_and_mass(x)
    entropy[broken] = np.nan
    return torch.from_numpy(np.where((t > 0) | broken, entropy, 0).astype(np.float32))


def _entropy_fake(logits: Tensor, temperature: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


def _aleatoric(alpha: Doubles, total: Doubles) -> Doubles:
    """AU of evidence alpha [R, k] with sum total [R, 1]."""
    psi = torch.digamma(torch.from_numpy(np.concatenate([alpha, total], axis=1) + 1)).numpy()
    share = alpha / np.where(total > 0, total, 1)
    spread: Doubles = (share * (psi[:, -1:] - psi[:, :-1])).sum(axis=1)
    return spread


def _doubt(probs: Doubles) -> Doubles:
    """AU of probabilities [R, k] that add up to 1."""
    psi = torch.digamma(torch.from_numpy(probs + 1)).numpy()
    spread: Doubles = (probs * (_PSI_2 - psi)).sum(axis=1)
    return spread


@lru_cache
def _most_doubt(k: int) -> float:
    return float(_doubt(np.full((1, k), 1 / k))[0])


def _relative_doubt(top: Doubles) -> Doubles:
    """AU of the probabilities of logits ``top`` [R, k], descending, over its maximum."""
    k = top.shape[1]
    if k == 1:
        return np.zeros(len(top))
    probs = np.exp(top - top[:, :1])
    probs /= probs.sum(axis=1, keepdims=True)
    relative: Doubles = np.minimum(np.maximum(_doubt(probs) / _most_doubt(k), 0), 1)
    return relative


def _logtoku_of(rows: Floats, k: int, evidence: int) -> tuple[Doubles, Doubles]:
    """AU and EU of usable rows."""
    k = min(k, rows.shape[1])
    top = torch.from_numpy(rows).topk(k).values.numpy().astype(np.float64)
    logits = np.maximum(top, 0)
    total = logits.sum(axis=1, keepdims=True)
    au = _relative_doubt(top) if evidence == PROBS else _aleatoric(logits, total)
    return au, (k / (total + k))[:, 0]


def logtoku_reference(logits: Tensor, k: int, evidence: int) -> tuple[Tensor, Tensor]:
    """AU and EU, float32 [R], of logits [R, V] from the k largest; evidence is PROBS or LOGITS."""
    rows, _, broken = _usable(float_rows(logits))
    au, eu = _logtoku_of(rows, k, evidence)
    au[broken] = np.nan
    eu[broken] = np.nan
    return torch.from_numpy(au.astype(np.float32)), torch.from_numpy(eu.astype(np.float32))


def _logtoku_fake(logits: Tensor, k: int, evidence: int) -> tuple[Tensor, Tensor]:
    au = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return au, torch.empty_like(au)


def sample_measured_reference(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    k: int,
    evidence: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token and truncation as of `sample`, and measures float32 [R, MEASURES].

    AU and EU are of the k largest logits and ``evidence``; k = 0 leaves them NaN. The token of a
    greedy row has a filtered log-probability of 0.
    """
    rows, params = float_rows(logits), parameters(sampling)
    token, truncation = sample_rows(rows, params, seed.numpy(), position.numpy(), stream)
    rows, largest, broken = _usable(rows)
    measures = np.full((len(rows), MEASURES), np.nan, np.float32)
    entropy, mass = _entropy_and_mass(rows - largest)
    logit = rows[np.arange(len(rows)), token]
    below = logit.astype(np.float64) - largest[:, 0]
    measures[:, LOGPROB] = _logprob(below, params, truncation[:, LOG_Z])
    measures[:, FULL_LOGPROB] = below - np.log(mass)
    measures[:, ENTROPY] = entropy
    if k > 0:
        measures[:, ALEATORIC], measures[:, EPISTEMIC] = _logtoku_of(rows, k, evidence)
    measures[broken] = np.nan
    return torch.from_numpy(token), torch.from_numpy(truncation), torch.from_numpy(measures)


def _logprob(below: Doubles, params: Parameters, log_z: Floats) -> Doubles:
    """Of tokens whose logits are ``below`` (<= 0) the maximum."""
    logprob: Doubles = below / params.temperature - log_z
    return logprob if params.greedy is None else np.where(params.greedy, 0, logprob)


def _sample_measured_fake(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    k: int,
    evidence: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    token = logits.new_empty(rows, dtype=torch.int64)
    truncation = logits.new_empty((rows, 3), dtype=torch.float32)
    return token, truncation, logits.new_empty((rows, MEASURES), dtype=torch.float32)


entropy = define(
    "entropy(Tensor logits, Tensor temperature) -> Tensor",
    entropy_reference,
    _entropy_fake,
    "uncertainty_triton:entropy",
)
logtoku = define(
    "logtoku(Tensor logits, int k, int evidence) -> (Tensor, Tensor)",
    logtoku_reference,
    _logtoku_fake,
    "uncertainty_triton:logtoku",
)
sample_measured = define(
    "sample_measured(Tensor logits, Tensor sampling, Tensor seed, Tensor position, int stream,"
    " int k, int evidence) -> (Tensor, Tensor, Tensor)",
    sample_measured_reference,
    _sample_measured_fake,
    "uncertainty_triton:sample_measured",
    "uncertainty_numba:sample_measured",
)
