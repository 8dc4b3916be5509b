"""Stage two: the small model learns the large one's distributions.

What counts for speculation is agreement on text that the large model writes itself, so most rows
are such text, and the target is its whole distribution, not the token that was drawn.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

from hybridgen.pair import attention, data, texts
from hybridgen.pair.loop import Loss
from hybridgen.pair.pretrain import logits

SAMPLE_ROWS = 48
PROMPT_LENGTH = 32
OWN_SHARE = 0.7
# From greedy to unchanged: at low temperatures the model repeats itself, and a draft that has not
# learnt to copy loses those easy rounds.
SAMPLE_TEMPERATURES = (0.0, 1.0)
LOSS_TEMPERATURES = (0.6, 1.0)


def sample_texts(
    model: Qwen3ForCausalLM,
    documents: list[np.ndarray],
    count: int,
    length: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """About ``count`` texts uint16 [length] that the model wrote from prompts of the corpus.

    A text starts at a random place of the corpus, and each batch has its own temperature.
    """
    prompts = data.rows(documents, PROMPT_LENGTH, rng)
    written: list[np.ndarray] = []
    while len(written) < count:
        rows = np.stack(list(islice(prompts, min(SAMPLE_ROWS, count - len(written)))))
        batch = texts.write(
            model,
            torch.from_numpy(rows[:, :-1].astype(np.int64)),
            length - PROMPT_LENGTH,
            temperature=float(rng.uniform(*SAMPLE_TEMPERATURES)),
            seed=int(rng.integers(2**31)),
        )
        written.extend(batch.numpy().astype(np.uint16))
    return written


def mixed_batches(
    corpus: list[np.ndarray],
    samples: list[np.ndarray],
    batch: int,
    length: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Endless batches int64 [batch, length + 1]; a row is the model's own text or the corpus."""
    own, others = data.rows(samples, length, rng), data.rows(corpus, length, rng)
    return data.mixed(own, others, OWN_SHARE, batch, rng)


def distillation_loss(teacher: Qwen3ForCausalLM, student: Qwen3ForCausalLM, compiled: bool) -> Loss:
    """Mean forward KL(teacher || student) in nats over the whole vocabulary.

    Half the weight is on the distributions at temperature 1, half on the sharper ones at 0.6: the
    small model cannot match everything, and the likeliest tokens are the ones that get accepted.
    """
    attention.use(teacher)
    attention.use(student)

    def loss(window: torch.Tensor) -> torch.Tensor:
        tokens = window[:, :-1]
        with torch.no_grad():
            target = logits(teacher, tokens).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = logits(student, tokens)
        scores = scores.float()
        parts = [divergence(target / t, scores / t) for t in LOSS_TEMPERATURES]
        return torch.stack(parts).mean()

    return torch.compile(loss, dynamic=False) if compiled else loss


def divergence(target: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Mean over rows of KL(softmax(target) || softmax(scores)) in nats, from logits [N, V]."""
    log_p = F.log_softmax(target, dim=-1)
    log_q = F.log_softmax(scores, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
