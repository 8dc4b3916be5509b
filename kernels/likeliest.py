"""What a profile keeps of a distribution: the likeliest tokens, how likely, and the entropy.

`likeliest_reference` is composed of torch's ops on any device, and can be captured; `likeliest` is
one compiled function on a CPU where numba is installed.
"""

from importlib import import_module

import torch
from torch import Tensor

from hybridgen.kernels.registry import has_numba

_UNDERFLOW = -1000.0  # of a log-probability: e**x is 0 there too, and 0 * -inf is not


def likeliest(
    logits: Tensor,
    place: Tensor,
    top: Tensor,
    ids: Tensor,
    logprob: Tensor,
    negentropy: Tensor,
    relative: Tensor | None = None,
) -> None:
    """Write what is known of each of ``logits`` float32 [N, V] at its ``place`` int64 [N].

    top           float32 [P, k]: the largest logits, in descending order
    ids           int64 [P, k]: whose they are
    logprob       float32 [P]: of the likeliest, in softmax(logits)
    negentropy    float32 [P]: minus the entropy of softmax(logits), in nats
    relative      float32 [N, V]: where the logits less the largest may be written, the logits
                  themselves too; None: a buffer of its own
    """
    written = top, ids, logprob, negentropy
    if logits.is_cpu and has_numba():
        import_module("hybridgen.kernels.uncertainty_numba").likeliest(logits, place, *written)
    else:
        likeliest_reference(logits, place, *written, relative)


def likeliest_reference(
    logits: Tensor,
    place: Tensor,
    top: Tensor,
    ids: Tensor,
    logprob: Tensor,
    negentropy: Tensor,
    relative: Tensor | None = None,
) -> None:
    """`likeliest`, in torch's ops."""
    largest, whose = logits.topk(top.shape[1], 1)
    relative = torch.sub(logits, largest.narrow(1, 0, 1), out=relative).clamp_min_(_UNDERFLOW)
    powers = relative.exp()
    total = powers.sum(1)
    product = powers.mul_(relative).sum(1).div_(total)
    first = total.log_().neg_()
    product.add_(first)
    written = top, ids, logprob, negentropy
    for buffer, found in zip(written, (largest, whose, first, product), strict=True):
        buffer.index_copy_(0, place, found)
