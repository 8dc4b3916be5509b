"""Measure the pair: held-out loss, and speculation on text that the large model writes.

No engine is needed. Let x be text from the large model, p its distribution and q the small one's
along x. Rejection sampling accepts a draft with the joint probability min(p, q) of proposing and
keeping it, so *given* that x was the outcome, the draft was accepted with probability
min(1, q(x) / p(x)), independently of everything before. Greedy is the limit: 1 where the argmax
agrees, else 0. Rounds of K drafts are then cut along the text.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

PROMPT_LENGTH = 64


@dataclass(frozen=True)
class Speculation:
    """How speculation with K drafts fares at one temperature."""

    agreement: float  # probability that one draft is accepted, whatever came before
    acceptance_rate: float  # accepted / drafted, over whole rounds
    accepted_per_position: list[float]  # of all rounds, those that accepted draft 1, 2, ...
    tau: float  # mean tokens a round, the large model's own token included

    def as_dict(self) -> dict[str, object]:
        """Rounded, for the metrics file."""
        return {
            name: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)
            for name, value in asdict(self).items()
        }


@torch.no_grad()
def held_out_loss(model: Qwen3ForCausalLM, windows: torch.Tensor, rows: int = 4) -> float:
    """Mean cross-entropy in nats a token of windows int64 [N, L + 1]."""
    total = 0.0
    for part in torch.split(windows, rows):
        scores = model(part[:, :-1]).logits.float().flatten(0, 1)
        total += len(part) * torch.nn.functional.cross_entropy(scores, part[:, 1:].flatten()).item()
    return total / len(windows)


@torch.no_grad()
def acceptance(
    llm: Qwen3ForCausalLM, slm: Qwen3ForCausalLM, texts: torch.Tensor, temperature: float
) -> np.ndarray:
    """Probability float64 [N, T - P] that the draft at each written token was accepted."""
    rows = []
    for text in torch.split(texts, 8):
        p, q = (model(text).logits[:, PROMPT_LENGTH - 1 : -1].float() for model in (llm, slm))
        written = text[:, PROMPT_LENGTH:, None]
        if temperature == 0:
            rows.append((q.argmax(-1, keepdim=True) == written).squeeze(-1).double())
            continue
        log_p, log_q = ((x / temperature).log_softmax(-1).gather(-1, written) for x in (p, q))
        rows.append((log_q - log_p).clamp(max=0).exp().squeeze(-1).double())
    return torch.cat(rows).numpy()


def speculate(probability: np.ndarray, drafts: int, seed: int, repeats: int = 16) -> Speculation:
    """Cut texts into rounds of ``drafts`` given each token's chance of acceptance [N, T]."""
    rng = np.random.default_rng(seed)
    rounds = 0
    reached = np.zeros(drafts, dtype=np.int64)
    for row in np.repeat(probability, repeats, axis=0):
        accepted = rng.random(len(row)) < row
        position = 0
        # A round that the end of the text would cut short is not counted.
        while position + drafts < len(row):
            run = accepted[position : position + drafts]
            length = drafts if run.all() else int(run.argmin())
            reached[:length] += 1
            rounds += 1
            position += length + 1
    shares = reached / rounds
    return Speculation(
        agreement=float(probability.mean()),
        acceptance_rate=float(shares.mean()),
        accepted_per_position=[float(share) for share in shares],
        tau=float(1 + shares.sum()),
    )


def repetition(texts: torch.Tensor) -> float:
    """``repeated`` of what was written after the prompts of texts int64 [N, T]."""
    return repeated(texts[:, PROMPT_LENGTH:].tolist())


def repeated(rows: list[list[int]], n: int = 8) -> float:
    """Share of the n-grams of the written tokens that occurred before in the same text."""
    again = total = 0
    for row in rows:
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        again += len(grams) - len(set(grams))
        total += len(grams)
    return again / max(1, total)
