"""How unsure a model is of its next token: entropy, and LogTokU's two numbers.

Entropy at a temperature, in nats, over the whole vocabulary (no filter):

    H = -sum p log p = log Z - sum p * x,    x = logit / T - max,    Z = sum exp(x),

and 0 at temperature 0, where the distribution is one token.

LogTokU (Ma et al. 2025, "Estimating LLM uncertainty with evidence") reads the largest k logits as
evidence of a Dirichlet distribution: with alpha the evidence, S its sum and psi the digamma
function,

    aleatoric   AU = -sum (alpha / S) * (psi(alpha + 1) - psi(S + 1))     spread among the tokens
    epistemic   EU = k / (S + k)                                        lack of evidence for any

The paper's evidence is the raw logits, here clamped at 0 (digamma has poles below); AU then moves
within a per cent or so. With the k largest probabilities as evidence AU follows entropy, so that is
the default for AU. EU always reads the clamped logits: from probabilities it is all but constant.
No evidence at all, S = 0, is AU = 0 (the limit) and EU = 1.

Shapes: logits [R, V] float32 or bfloat16, any row stride; results float32 [R]. A broken row (any
NaN, any +inf, or nothing but -inf) gives NaN. The inputs are read only.
"""

import numpy as np
import torch

from hybridgen.kernels.registry import define
from hybridgen.kernels.sampling import Doubles, float_rows

PROBS, LOGITS = 0, 1
EVIDENCE = {"probs": PROBS, "logits": LOGITS}
"""Evidence of AU: the k largest probabilities (temperature 1), or the k largest logits."""

_UNDERFLOW = -1000.0


def _entropy(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, float32 [R], of softmax(logits [R, V] / temperature [R])."""
    rows, t = float_rows(logits), temperature.numpy()
    largest = rows.max(axis=1, keepdims=True)
    broken = ~np.isfinite(largest[:, 0])
    if broken.any():
        rows, largest = np.where(broken[:, None], 0, rows), np.where(broken[:, None], 0, largest)
    x = (rows - largest) / np.where(t > 0, t, 1)[:, None]
    np.maximum(x, _UNDERFLOW, out=x)  # exp is 0 there too, and 0 * -inf is not
    weight = np.exp(x)
    mass = weight.sum(axis=1)
    entropy = np.log(mass) - np.einsum("rv,rv->r", weight, x) / mass
    entropy[broken] = np.nan
    return torch.from_numpy(np.where((t > 0) | broken, entropy, 0).astype(np.float32))


def _entropy_fake(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


def _aleatoric(alpha: Doubles, total: Doubles) -> Doubles:
    """AU of evidence alpha [R, k] with sum total [R, 1]."""
    psi = torch.digamma(torch.from_numpy(np.concatenate([alpha, total], axis=1) + 1)).numpy()
    share = alpha / np.where(total > 0, total, 1)
    spread: Doubles = (share * (psi[:, -1:] - psi[:, :-1])).sum(axis=1)
    return spread


def _logtoku(logits: torch.Tensor, k: int, evidence: int) -> tuple[torch.Tensor, torch.Tensor]:
    """AU and EU, float32 [R], of logits [R, V] from the k largest; evidence is PROBS or LOGITS."""
    rows = float_rows(logits)
    k = min(k, rows.shape[1])
    top = torch.from_numpy(rows).topk(k).values.numpy().astype(np.float64)
    broken = ~np.isfinite(top[:, 0])
    if broken.any():
        rows, top = np.where(broken[:, None], 0, rows), np.where(broken[:, None], 0, top)
    logits_evidence = np.maximum(top, 0)
    total = logits_evidence.sum(axis=1, keepdims=True)
    if evidence == PROBS:
        largest = top[:, :1]
        mass = np.exp(rows - largest.astype(np.float32)).sum(axis=1, keepdims=True)
        probs = np.exp(top - largest) / mass
        au = _aleatoric(probs, probs.sum(axis=1, keepdims=True))
    else:
        au = _aleatoric(logits_evidence, total)
    eu = (k / (total + k))[:, 0]
    au[broken] = np.nan
    eu[broken] = np.nan
    return torch.from_numpy(au.astype(np.float32)), torch.from_numpy(eu.astype(np.float32))


def _logtoku_fake(logits: torch.Tensor, k: int, evidence: int) -> tuple[torch.Tensor, torch.Tensor]:
    au = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return au, torch.empty_like(au)


entropy = define(
    "entropy(Tensor logits, Tensor temperature) -> Tensor",
    _entropy,
    _entropy_fake,
    "uncertainty_triton:entropy",
)
logtoku = define(
    "logtoku(Tensor logits, int k, int evidence) -> (Tensor, Tensor)",
    _logtoku,
    _logtoku_fake,
    "uncertainty_triton:logtoku",
)
