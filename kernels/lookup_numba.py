"""`lookup.py` compiled for a CPU: one pass over a text, from its end."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.lookup import MAX_NGRAM
from hybridgen.kernels.numba_utils import compact, exactly, numbers_at, rows_of

_INT = np.int64(0)


def lookup(tokens: Tensor, length: Tensor, drafts: Tensor) -> Tensor:
    """See `lookup_reference`."""
    matched = torch.empty_like(length)
    tokens, length = compact(tokens), length.contiguous()
    _lookup(
        (*rows_of(tokens), length.data_ptr()),
        (*rows_of(drafts), matched.data_ptr()),
        (tokens.shape[1], *drafts.shape),
    )
    return matched


@exactly
def _lookup(
    read: Any,  # where tokens [B, T] are and their stride, and where length [B] is
    written: Any,  # where drafts [B, K] are and their stride, and where matched [B] is
    sizes: Any,  # T, B, K
) -> None:
    width, rows, count = sizes
    length, matched = numbers_at(read[2], _INT, rows), numbers_at(written[2], _INT, rows)
    for b in range(rows):
        text = numbers_at(read[0] + b * read[1], _INT, width)
        drafts = numbers_at(written[0] + b * written[1], _INT, count)
        last, most = length[b] - 1, 0
        end = last - 1  # where nothing matches: the last token follows itself
        for place in range(last - 1, -1, -1):
            n = 0
            while n < MAX_NGRAM and n <= place and text[place - n] == text[last - n]:
                n += 1
            if n > most:
                end, most = place, n
            if most == MAX_NGRAM:
                break
        for i in range(count):
            drafts[i] = text[end + 1 + i % (last - end)]
        matched[b] = most
