"""Why two devices may draw different tokens: scores that float32 cannot tell apart.

Filters are integers, so every device keeps the same tokens. Scores and probabilities are float32,
whose last bits differ with the library: about 4e-6 of all draws are between two too close to tell.
On a GPU another token than the reference's counts as the same if float64 finds such a near tie.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.philox import ACCEPT, RESIDUAL, TARGET, uniform
from hybridgen.kernels.sampling import filter_logits

# What a score may be off, in the sizes of its terms and 1: x - max, 1 / T, their product, two
# logarithms, an exponential and the sum are off by 2**-22 each at most, on both devices: 14 of
# them, and a seventh to spare.
UNIT = 2.0**-18


def noise(seed: int, position: int, tokens: list[int], stream: int) -> np.ndarray:
    """Gumbel noise of ``tokens``, float64."""
    u = uniform(np.int64(seed), np.int64(position), np.array(tokens), stream)
    return -np.log(-np.log1p(-u.astype(np.float64)))


def too_close(log_weights: np.ndarray, errors: np.ndarray, added: np.ndarray) -> bool:
    """Whether two scores, log-weight plus noise, differ by less than they may be off."""
    margin = (UNIT * (1 + np.abs(log_weights) + np.abs(added)) + errors).max()
    return bool(abs(np.diff(log_weights + added)[0]) <= margin)


def is_near_tie(
    logits: Tensor, temperature: float, seed: int, position: int, tokens: list[int], stream: int
) -> bool:
    """Whether two ``tokens`` of ``logits`` [V] are too close in a draw from all or some of them."""
    below = logits[tokens].double().numpy() - float(logits.max())
    added = noise(seed, position, tokens, stream)
    return temperature > 0 and too_close(below / temperature, np.zeros(2), added)


def settled(ours: Tensor, theirs: Tensor, given: tuple[Any, ...]) -> Tensor:
    """The tokens ``ours`` [R] of `sample`, near ties decided as in ``theirs``; its arguments."""
    logits, sampling, seed, position, stream = given
    result = ours.clone()
    for row in (ours != theirs).nonzero()[:, 0].tolist():
        draw = float(sampling[row, 0]), int(seed[row]), int(position[row])
        if is_near_tie(logits[row], *draw, [int(ours[row]), int(theirs[row])], stream):
            result[row] = theirs[row]
    return result


def probabilities(logits: Tensor, truncation: Tensor, heat: float, tokens: list[int]) -> np.ndarray:
    """float64; 0 beyond the vocabulary and where the filter keeps nothing."""
    tau, largest, log_z = truncation.double().tolist()
    x = np.array([float(logits[t]) if t < len(logits) else -np.inf for t in tokens])
    return np.where(x >= tau, np.exp((x - largest) / heat - log_z), 0)


def is_explained(block: Any, row: int, place: int, tokens: list[int], rejection: bool) -> bool:
    """Whether two verdicts on a sequence may differ first at ``place``, where they have ``tokens``.

    block  arguments of `verify_rejection`, by name
    """
    heat = float(block.sampling[row, 0])
    seed, position = int(block.seed[row]), int(block.length[row]) + place
    logits = block.target[row, place]
    last = place == block.drafts.shape[1]
    if not rejection or last or heat <= 0:
        return is_near_tie(logits, heat, seed, position, tokens, TARGET)
    draft = int(block.drafts[row, place])
    law = filter_logits(logits[None], block.sampling[row : row + 1])[0]
    among = tokens if draft not in tokens else [draft]
    p = probabilities(logits, law, heat, among)
    q = probabilities(block.draft[row, place], block.truncation[row, place], heat, among)
    error = UNIT * (p * (1 - np.log(np.maximum(p, 1e-30))) + q * (1 - np.log(np.maximum(q, 1e-30))))
    if draft in tokens:  # accepted by one of them
        u = float(uniform(np.int64(seed), np.int64(position), 0, ACCEPT))
        return bool(abs(u * q - p)[0] <= error[0])
    left = np.maximum(p - q, 1e-30)
    return too_close(np.log(left), error / left, noise(seed, position, tokens, RESIDUAL))


def explained(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], block: Any, rejection: bool
) -> Tensor:
    """bool [B]: sequences whose verdicts are the same, or differ first at a near tie."""
    (tokens, counts, broken), (plain, plain_counts, plain_broken) = ours, theirs
    stands = torch.arange(tokens.shape[1]) < torch.minimum(counts, plain_counts)[:, None]
    differs = (tokens != plain) & stands
    same = ~differs.any(1) & (counts == plain_counts) & (broken == plain_broken)
    for row in differs.any(1).nonzero()[:, 0].tolist():
        place = int(differs[row].int().argmax())
        pair = [int(tokens[row, place]), int(plain[row, place])]
        same[row] = is_explained(block, row, place, pair, rejection)
    return same
