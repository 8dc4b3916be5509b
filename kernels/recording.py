"""What rounds keep for a profile: of distributions how they are spread, of drafts their logits.

`measure` and `keep_drafts` are composed of torch's ops, on any device, and can be captured. For a
CPU `recording_numba.py` has both compiled, for there a small model's step takes no longer than a
few dozen calls of ops.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_UNDERFLOW = -1000.0  # of a log-probability: e**x is 0 there too, and 0 * -inf is not

NEVER = -1
TOKEN, DRAWN, JUDGED, KEPT = 0, 1, 5, 9
"""Columns of what is kept of a draft: the token, then where it was drawn and of the LLM each its
logit and the three numbers of `sampling` that make a probability of that; how many they are."""


class Measured(NamedTuple):
    """What was measured of the distribution at each position of B rows of T positions: that of
    position p of row b at b * T + p. At position 0, which is a prompt's, is what nobody wants.

    top           float32 [B * T, k]: the largest logits, in descending order
    ids           int64 [B * T, k]: whose they are
    logprob       float32 [B * T]: of the likeliest, in softmax(logits)
    negentropy    float32 [B * T]: minus the entropy of softmax(logits), in nats
    then          int64 [B * T]: how long the text was then, `NEVER` where nothing was measured
    """

    top: Tensor
    ids: Tensor
    logprob: Tensor
    negentropy: Tensor
    then: Tensor

    @classmethod
    def allocate(cls, places: int, k: int, device: torch.device) -> "Measured":
        def never(*shape: int) -> Tensor:
            return torch.full(shape, NEVER, dtype=torch.int64, device=device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        kept = zeros(places, k), never(places, k)
        return cls(*kept, zeros(places), zeros(places), never(places))


def measure(
    logits: Tensor, start: Tensor, length: Tensor, drafted: bool, measured: Measured
) -> None:
    """Keep what is known of logits [B, M, V], those after the tokens from ``start`` int64 [B] on.

    What was measured after the text's own tokens (it was as long then) is not measured again.

    length     int64 [B]: of the texts now
    drafted    tokens may be drafts: what stands behind the end of the text is measured too
    """
    batch, columns, _ = logits.shape
    places, device = len(measured.then), start.device
    first = torch.arange(0, places, places // batch, dtype=torch.int64, device=device)
    column = torch.arange(1, columns + 1, dtype=torch.int64, device=device)
    position = (start.unsqueeze(1) + column).clamp_min_(0)
    length, first = length.unsqueeze(1), first.unsqueeze(1)
    index = (position + first).view(-1)
    known = measured.then.index_select(0, index).view(position.shape) >= position
    if not drafted:
        known |= position > length
    place = (position.masked_fill_(known, 0) + first).view(-1)
    measured.then.index_copy_(0, place, length.expand(-1, columns).reshape(-1))
    _likeliest(logits.flatten(0, 1).float(), place, measured)


def _likeliest(logits: Tensor, place: Tensor, measured: Measured) -> None:
    """Of logits float32 [N, V], at ``place`` int64 [N]."""
    largest, whose = logits.topk(measured.top.shape[1], 1)
    relative = (logits - largest.narrow(1, 0, 1)).clamp_min_(_UNDERFLOW)
    powers = relative.exp()
    total = powers.sum(1)
    product = powers.mul_(relative).sum(1).div_(total)
    first = total.log_().neg_()
    product.add_(first)
    for buffer, found in zip(measured, (largest, whose, first, product), strict=False):
        buffer.index_copy_(0, place, found)


def keep_drafts(
    kept: Tensor,
    start: Tensor,
    tokens: Tensor,
    drawn: Sequence[Tensor],
    draft_truncation: Tensor,
    logits: Tensor,
    truncation: Tensor,
) -> None:
    """Keep drafts in ``kept`` float32 [B, T, KEPT], from position ``start`` int64 [B] on.

    A draft beyond the LLM's vocabulary, which verification rejects, has the logit of its last
    token.

    tokens                        int64 [B, K]
    drawn, draft_truncation       [B, V'] of each draft, float32 [B, K, 3]: what they were drawn
                                  from; of drafts without such, ``drawn`` is empty
    logits, truncation            [B, K + 1, V], float32 [B, K + 1, 3]: the LLM's
    """
    count, positions = tokens.shape[1], kept.shape[1]
    whose = tokens.unsqueeze(2)
    told = [whose.float()]
    if drawn:
        own = [each.gather(1, tokens[:, i : i + 1]) for i, each in enumerate(drawn)]
        told += [torch.stack(own, 1).float(), draft_truncation]
    else:
        told += [truncation.new_full((*tokens.shape, JUDGED - DRAWN), torch.nan)]
    judged = logits[:, :count].gather(2, whose.clamp_max(logits.shape[2] - 1))
    told += [judged.float(), truncation[:, :count]]
    place = start[:, None] + torch.arange(count, dtype=torch.int64, device=start.device)
    index = place.clamp_max(positions - 1)[:, :, None].expand(-1, -1, KEPT)
    kept.scatter_(1, index, torch.cat(told, 2))
