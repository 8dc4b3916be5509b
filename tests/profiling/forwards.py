"""What transformers' own forward says of a text, in float32: for comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from conftest import TinyPair
from scipy.special import digamma
from transformers import AutoModelForCausalLM


class Said(NamedTuple):
    """Of each token but the first, float64 or int64 [T - 1]."""

    aleatoric: np.ndarray
    entropy: np.ndarray
    epistemic: np.ndarray
    likeliest: np.ndarray
    logprob: np.ndarray


class Forwards:
    """Both models of a pair of checkpoints."""

    def __init__(self, pair: TinyPair) -> None:
        self.models = {name: load(folder) for name, folder in pair._asdict().items()}

    @torch.no_grad()
    def say(self, name: str, text: Sequence[int]) -> Said:
        logits = self.models[name](torch.tensor([text])).logits[0, :-1].double()
        logp = logits.log_softmax(-1)
        top = logits.topk(10).values.numpy()
        p = np.exp(top - top.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        most = digamma(2) - digamma(1.1)
        return Said(
            aleatoric=(p * (digamma(2) - digamma(p + 1))).sum(1) / most,
            entropy=-(logp.exp() * logp).sum(-1).numpy(),
            epistemic=10 / (np.maximum(top, 0).sum(1) + 10),
            likeliest=logits.argmax(-1).numpy(),
            logprob=logp.gather(1, torch.tensor(text[1:])[:, None])[:, 0].numpy(),
        )


def load(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()
