"""The kernels behind the strategies, for your own: sampling and the two routing metrics.

Each takes the logits of one token [V] and returns Python numbers, or those of R tokens [R, V] and
returns tensors [R] on the same device. Logits may have any floating dtype, and V up to 524,287.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridgen import detokenizer
from hybridgen.checks import check_int, shown
from hybridgen.engine.sampling import Sampling
from hybridgen.fields import Facts
from hybridgen.kernels import philox, sampling, uncertainty
from hybridgen.kernels.weights import MAX_VOCAB
from hybridgen.names import Evidence
from hybridgen.parameters import SEED, TEMPERATURE, check_sampling
from hybridgen.strategies.declarations import EVIDENCE


def sample_token(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: Any = None,
    position: int = 0,
) -> Any:
    """Draw a token id: an int for logits [V], an int64 tensor [R] for [R, V].

    The filters apply in the order of the arguments; 0, 0, 1 and 0 turn them off, and temperature 0
    takes the largest logit. `seed` and `position` decide the draw: in a loop, keep the seed and
    count the position up. An int seed s gives row r the seed s + r; None draws one.

    Raises ValueError for logits that hold NaN or +inf, or nothing above -inf.
    """
    rows = _rows(logits)
    count, vocab_size = rows.shape
    facts = Facts(count, vocab_size)
    values = check_sampling(Sampling(temperature, top_k, top_p, min_p), facts)
    columns = torch.tensor([values], dtype=torch.float64, device=rows.device)
    seeds = torch.tensor(SEED.check("seed", seed, facts), dtype=torch.int64, device=rows.device)
    place = torch.full_like(seeds, check_int("position", position, 0, 2**31 - 1))
    token, truncation = sampling.sample(rows, columns.repeat(count, 1), seeds, place, philox.TARGET)
    if bool(truncation[:, sampling.LOG_Z].isnan().any()):
        raise ValueError("logits hold NaN or +inf, or nothing above -inf")
    return token if logits.ndim == 2 else int(token)


def compute_logu(logits: Tensor, k: int = 10, evidence: Evidence = "probs") -> tuple[Any, Any]:
    """Aleatoric and epistemic uncertainty (LogTokU, Ma et al. 2025), floats or tensors [R].

    With evidence a_1..a_k of the k likeliest tokens and S their sum,
    AU = -sum_i a_i/S (psi(a_i + 1) - psi(S + 1)) and EU = k / (S + k).

    evidence="probs"    AU from the tokens' probabilities, renormalised (S = 1), over its maximum
                        psi(2) - psi(1 + 1/k): 0 is sure, 1 is k equal candidates; 0 for k = 1
    evidence="logits"   AU from their logits, negative ones as 0, as in the paper

    EU always uses the logits: with probabilities it would be a constant.
    """
    rows = _rows(logits)
    number = check_int("k", k, 1, rows.shape[1])
    kind = uncertainty.EVIDENCE[EVIDENCE.check("evidence", evidence, Facts())]
    aleatoric, epistemic = uncertainty.logtoku(rows, number, kind)
    if logits.ndim == 2:
        return aleatoric, epistemic
    return float(aleatoric), float(epistemic)


def calculate_token_entropy(logits: Tensor, temperature: float = 1.0) -> Any:
    """Entropy in nats of softmax(logits / temperature), a float or a tensor [R]; 0 at 0."""
    rows = _rows(logits)
    heat = TEMPERATURE.check("temperature", temperature, Facts())
    temperatures = torch.full((len(rows),), heat, dtype=torch.float64, device=rows.device)
    entropy = uncertainty.entropy(rows, temperatures)
    return entropy if logits.ndim == 2 else float(entropy)


def _rows(logits: Tensor) -> Tensor:
    """`logits` as [R, V] in a dtype the kernels take."""
    accepted = "a floating-point tensor [V] or [R, V]"
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be {accepted}, got {shown(logits)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be {accepted}, got dtype {logits.dtype}")
    if logits.is_nested or logits.layout != torch.strided or logits.is_meta:
        kind = "nested" if logits.is_nested else f"{logits.layout} on {logits.device}"
        raise TypeError(
            f"logits must be {accepted} that is dense and holds values, got a {kind} one"
        )
    if logits.ndim not in (1, 2) or 0 in logits.shape:
        raise ValueError(f"logits must be {accepted}, not empty, got shape {list(logits.shape)}")
    if logits.shape[-1] > MAX_VOCAB:
        raise ValueError(
            f"logits must have at most {MAX_VOCAB} columns, one for each token, "
            f"got shape {list(logits.shape)}"
        )
    rows = logits.reshape(-1, logits.shape[-1])
    return rows if rows.dtype in (torch.float32, torch.bfloat16, torch.float16) else rows.float()


class NewText(str):
    """A text that knows the token ids it is made of: ``tokens``."""

    tokens: list[int]


def new_text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> NewText:
    """What the token ids ``new`` add to the text of the ids ``prompt``, without special tokens.

    Where the end of the prompt's text changes as tokens follow (half a character that becomes
    whole), the changed part belongs to the new text.
    """
    text = NewText(detokenizer.new_text(tokenizer, prompt, new))
    text.tokens = [int(token) for token in new]
    return text
