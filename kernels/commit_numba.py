"""`verify.commit` and `window.window` compiled for a CPU: a few numbers of each row, at once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.numba_utils import exactly, numbers_at
from hybridgen.kernels.sampling import LOG_Z
from hybridgen.kernels.verify import (
    BROKEN,
    DONE,
    FLAGS,
    HEAD,
    LENGTH,
    WINDOW,
    WRITER,
    commit_reference,
)
from hybridgen.kernels.window import window_reference

_INT, _BYTE, _FLOAT = np.int64(0), np.uint8(0), np.float32(0)
_COUNT = {torch.int64: _INT, torch.bool: _BYTE}
_FACTS = 3  # of a truncation


def commit(
    tokens: Tensor,
    length: Tensor,
    done: Tensor,
    report: Tensor,
    new_tokens: Tensor,
    count: Tensor | None,
    writer: int,
    drafter: int,
    broken: Tensor | None,
    limit: Tensor,
    eos: Tensor,
    truncation: Tensor | None,
) -> None:
    """See `verify.commit_reference`."""
    written = tokens, length, done, report
    if not all(each.is_contiguous() for each in written):
        rest = limit, eos, truncation
        return commit_reference(*written, new_tokens, count, writer, drafter, broken, *rest)
    read = [
        None if each is None else each.contiguous()
        for each in (new_tokens, limit, eos, count, broken, truncation)
    ]
    _commit(
        tuple(each.data_ptr() for each in written),
        tuple(0 if each is None else each.data_ptr() for each in read),
        _INT if count is None else _COUNT[count.dtype],
        (*tokens.shape, report.shape[1], new_tokens.shape[1], eos.shape[1]),
        0 if truncation is None else truncation.numel() // tokens.shape[0],
        writer,
        drafter,
    )


def window(
    tokens: Tensor, length: Tensor, start: Tensor | None, ids: Tensor, positions: Tensor
) -> None:
    """See `window.window_reference`."""
    if not (tokens.is_contiguous() and length.is_contiguous()):
        return window_reference(tokens, length, start, ids, positions)
    start = None if start is None else start.contiguous()
    _window(
        (tokens.data_ptr(), length.data_ptr(), 0 if start is None else start.data_ptr()),
        (ids.data_ptr(), ids.stride(0), positions.data_ptr(), positions.stride(0)),
        (*tokens.shape, ids.shape[1], positions.shape[0]),
    )


@exactly
def _commit(
    written: Any,  # where tokens [B, T], length [B], done [B] and report [B, W] are
    read: Any,  # and new tokens [B, N], limit [B], eos [B, E], then what may be 0: count, broken
    # and truncation [B, F]
    kind: Any,  # of counts
    sizes: Any,  # B, T, W, N, E
    facts: int,  # F
    writer: int,
    drafter: int,
) -> None:
    rows, width, told, most, num_eos = sizes
    tokens = numbers_at(written[0], _INT, (rows, width))
    length, done = numbers_at(written[1], _INT, rows), numbers_at(written[2], _BYTE, rows)
    report = numbers_at(written[3], _INT, (rows, told))
    new = numbers_at(read[0], _INT, (rows, most))
    limit, eos = numbers_at(read[1], _INT, rows), numbers_at(read[2], _INT, (rows, num_eos))
    counts, broken = numbers_at(read[3], kind, rows), numbers_at(read[4], _BYTE, rows)
    truncation = numbers_at(read[5], _FLOAT, (rows, facts))
    for b in range(rows):
        if done[b]:
            continue
        failed = read[4] != 0 and broken[b] != 0
        for i in range(LOG_Z, facts, _FACTS):
            failed |= truncation[b, i] != truncation[b, i]
        if failed:
            done[b] = 1
            report[b, FLAGS] |= DONE | BROKEN
            continue
        count, first, ended = np.int64(counts[b]) if read[3] != 0 else most, length[b], False
        emitted = np.int64(0)
        while emitted < count and first + emitted < limit[b] and not ended:
            token = new[b, emitted]
            for e in range(num_eos):
                ended |= token == eos[b, e]
            place, by = first + emitted, writer if emitted == count - 1 else drafter
            tokens[b, place] = token
            report[b, HEAD + place % WINDOW] = token + by * WRITER
            emitted += 1
        length[b] = first + emitted
        finished = ended or first + emitted >= limit[b]
        done[b] = finished
        report[b, LENGTH], report[b, FLAGS] = first + emitted, np.int64(finished)


@exactly
def _window(
    read: Any,  # where tokens [B, T] and length [B] are, and start [B] or 0
    written: Any,  # where ids [B, N] and positions [P, B] are, each with its stride
    sizes: Any,  # B, T, N, P
) -> None:
    rows, width, count, places = sizes
    tokens, length = numbers_at(read[0], _INT, (rows, width)), numbers_at(read[1], _INT, rows)
    start = numbers_at(read[2], _INT, rows)
    for b in range(rows):
        first = start[b] if read[2] != 0 else length[b] - count
        ids = numbers_at(written[0] + 8 * b * written[1], _INT, count)
        for i in range(count):
            ids[i] = tokens[b, max(min(first + i, length[b] - 1), 0)]
        for p in range(places):
            numbers_at(written[2] + 8 * p * written[3], _INT, rows)[b] = first + p
