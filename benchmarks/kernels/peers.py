"""What the ops are compared with: torch as a transformers user composes it, and other kernels.

flash-attn and FlashInfer are used where they are installed.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def installed(name: str, device: torch.device) -> Any:
    """The module, or None where it is not installed or there is no GPU for it."""
    if device.type == "cpu":
        return None
    try:
        return import_module(name)
    except ImportError:
        return None


def warpers(temperature: float, top_k: int, top_p: float, min_p: float) -> LogitsProcessorList:
    """The list that ``generate`` makes of these parameters."""
    made = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        made.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        made.append(TopPLogitsWarper(top_p))
    if min_p:
        made.append(MinPLogitsWarper(min_p))
    return made


Distribution = Callable[[Tensor], Tensor]


def filtered(temperature: float, top_k: int, top_p: float, min_p: float) -> Distribution:
    """logits [R, V] -> probabilities float32 [R, V], as ``generate`` computes them."""
    process = warpers(temperature, top_k, top_p, min_p)

    def probabilities(logits: Tensor) -> Tensor:
        no_ids: Any = None  # which none of these reads
        warped: Tensor = process(no_ids, logits.float())
        return warped.softmax(-1)

    return probabilities


def draw(probabilities: Tensor) -> Tensor:
    return torch.multinomial(probabilities, 1)


def flashinfer_draw(
    flashinfer: Any, temperature: float, top_k: int, top_p: float, min_p: float
) -> Callable[[Tensor], Any]:
    """FlashInfer's kernels for the same filter."""
    sampling = flashinfer.sampling

    def sample(logits: Tensor) -> Any:
        scaled = logits.float() / temperature
        if not min_p:
            if not top_k and top_p == 1:
                return sampling.sampling_from_logits(scaled)
            top = top_k or logits.shape[1]
            return sampling.top_k_top_p_sampling_from_logits(scaled, top, top_p)
        probabilities = scaled.softmax(-1)
        if top_k:
            probabilities = sampling.top_k_renorm_probs(probabilities, top_k)
        if top_p < 1:
            probabilities = sampling.top_p_renorm_probs(probabilities, top_p)
        return sampling.min_p_sampling_from_probs(probabilities, min_p)

    return sample


def rejection(
    distribution: Distribution, target_logits: Tensor, draft_logits: Tensor, drafts: Tensor
) -> tuple[Tensor, Tensor]:
    """Speculative sampling of [B, K] drafts without a wait: tokens [B, K + 1] and their count.

    As in transformers' ``_speculative_sampling``, for several rows.
    """
    batch, columns, vocab = target_logits.shape
    drafted = columns - 1
    p = distribution(target_logits.reshape(-1, vocab)).view(batch, columns, vocab)
    q = distribution(draft_logits.reshape(-1, vocab)).view(batch, drafted, vocab)
    p_x, q_x = (x[:, :drafted].gather(2, drafts.unsqueeze(2)).squeeze(2) for x in (p, q))
    accepted = (torch.rand_like(p_x) * q_x < p_x).long().cumprod(1).sum(1)
    at = accepted.view(-1, 1, 1).expand(-1, 1, vocab)
    taken = F.pad(q, (0, 0, 0, 1)).gather(1, at)  # nothing to take away after the last draft
    residual = (p.gather(1, at) - taken).clamp_min_(0).squeeze(1)
    token = draw(residual)
    tokens = F.pad(drafts, (0, 1)).scatter(1, accepted.unsqueeze(1), token)
    return tokens, accepted + 1


def coupled(
    distribution: Distribution, target_logits: Tensor, drafts: Tensor
) -> tuple[Tensor, Tensor]:
    """The target's own draws [B, K + 1], and how many stand: the drafts only have to match."""
    batch, columns, vocab = target_logits.shape
    tokens = draw(distribution(target_logits.reshape(-1, vocab))).view(batch, columns)
    accepted = (tokens[:, :-1] == drafts).long().cumprod(1).sum(1)
    return tokens, accepted + 1
