"""Muon for the hidden matrices, AdamW for the embedding and the norms, one schedule for both.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix, and learns more from each token
than AdamW does. Its Newton-Schulz steps are the expensive part of a small batch, so each process
updates only the matrices that it owns and then hands them round.
"""

from typing import Any

import torch
from torch import nn

from hybridgen.pair import parallel

MUON_LR = 0.02
EMBEDDING_LR = 4e-3
NORM_LR = 2e-3
WEIGHT_DECAY = 0.1
WARMUP = 0.02
CLIP = 1.0


def schedule(progress: float) -> float:
    """Factor on every learning rate at a fraction of the run: warm up, then fall to zero."""
    if progress < WARMUP:
        return 0.05 + 0.95 * progress / WARMUP
    return max(0.0, 1.0 - (progress - WARMUP) / (1.0 - WARMUP))


class Optimizer:
    """Both optimisers behind one ``step(progress)``."""

    def __init__(self, model: nn.Module, rank: int, scale: float = 1.0) -> None:
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        embedding = [p for n, p in named.items() if "embed_tokens" in n]
        norms = [p for p in self.parameters if p.ndim == 1]
        matrices = [p for n, p in named.items() if p.ndim == 2 and "embed_tokens" not in n]
        self.owned = [matrices[i :: parallel.world_size()] for i in range(parallel.world_size())]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                self.owned[rank], lr=MUON_LR * scale, weight_decay=WEIGHT_DECAY, momentum=0.95
            ),
            torch.optim.AdamW(
                [
                    {"params": embedding, "lr": EMBEDDING_LR * scale, "weight_decay": WEIGHT_DECAY},
                    {"params": norms, "lr": NORM_LR * scale, "weight_decay": 0.0},
                ],
                betas=(0.9, 0.95),
            ),
        ]
        self.base = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, progress: float) -> None:
        """Average, clip and apply the gradients; clear them."""
        parallel.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for part, base in zip(self.parts, self.base, strict=True):
            for group, lr in zip(part.param_groups, base, strict=True):
                group["lr"] = lr * schedule(progress)
            part.step()
        for owner, matrices in enumerate(self.owned):
            parallel.share(matrices, owner)
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> list[dict[str, Any]]:
        """This process's part of the state."""
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Continue from ``state()``."""
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)
