"""`routing.py` in Triton: one program a row decides, and one a row finds what the LLM reads.

The quantile takes no sort: of the W metrics it is the smallest that no more than ``rank`` others
exceed, and W * W comparisons are 128 a thread.

Predicted on an H100: a launch and two dependent reads, 2.5 us for any number of rows; a moving
threshold takes 1 us more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels import verify
from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.routing import STEER
from hybridgen.kernels.window_triton import load_between

_PENDING, _NOTE = tl.constexpr(verify.PENDING), tl.constexpr(verify.NOTE)
_STEER = tl.constexpr(STEER)
_STEP = tl.constexpr(16)
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["stride_value"], do_not_specialize_on_alignment=["value_ptr"])
def decide(
    value_ptr,
    stride_value,
    done_ptr,
    length_ptr,
    cached_ptr,
    rate_ptr,
    threshold_ptr,
    metrics_ptr,
    decisions_ptr,
    routed_ptr,
    report_ptr,
    stride_report,
    stands_ptr,
    MOVING: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Whether a row is routed. Grid: rows. Reads and writes what `route_reference` says."""
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(value_ptr + row * stride_value)
    live = tl.load(done_ptr + row) == 0
    threshold = tl.load(threshold_ptr + row)
    report = report_ptr + row * stride_report
    if MOVING:
        decisions = decisions_ptr + 2 * row
        taken, asked = tl.load(decisions), tl.load(decisions + 1)
        if live:
            metrics = metrics_ptr + row * WIDTH
            metric = tl.where(value == value, value, float("inf"))
            rate = tl.load(rate_ptr + row)
            share = rate + (taken.to(tl.float32) * rate - asked.to(tl.float32)) * _STEER
            seen = tl.minimum(taken + 1, WIDTH).to(tl.float32)
            rank = tl.maximum((seen * share + 0.5).to(tl.int32), 0)
            threshold = _quantile(metrics, (taken % WIDTH).to(tl.int32), metric, rank, WIDTH)
            tl.store(metrics + taken % WIDTH, metric)
            tl.store(decisions, taken + 1)
            tl.store(decisions + 1, asked + (value > threshold).to(tl.int64))
            tl.store(threshold_ptr + row, threshold)
            tl.store(report + _NOTE, threshold.to(tl.int32, bitcast=True).to(tl.int64))
    routed = live & (value > threshold)
    pending = tl.load(length_ptr + row) - tl.load(cached_ptr + row)
    tl.store(routed_ptr + row, routed)
    tl.store(report + _PENDING, tl.where(routed, pending, 0))
    tl.store(stands_ptr + row, routed == 0)


@triton.jit
def _quantile(metrics_ptr, slot, metric, rank, WIDTH: tl.constexpr):
    """The smallest of WIDTH metrics that at most ``rank`` exceed; ``metric`` is that in ``slot``.

    What stands in the slot is not used: it is written meanwhile.
    """
    i = tl.arange(0, WIDTH)
    own = tl.where(i == slot, metric, tl.load(metrics_ptr + i))
    above = tl.zeros([WIDTH], tl.int32)
    for first in tl.static_range(0, WIDTH, _STEP):
        j = first + tl.arange(0, _STEP)
        other = tl.where(j == slot, metric, tl.load(metrics_ptr + j))
        above += tl.sum((other[:, None] > own[None, :]).to(tl.int32), 0)
    quantile = tl.min(tl.where(above <= rank, own, float("inf")), 0)
    return tl.where(rank < WIDTH, quantile, float("-inf"))


@triton.jit(do_not_specialize=["count", "keep"])
def advance(
    tokens_ptr,
    stride_tokens,
    length_ptr,
    routed_ptr,
    cached_ptr,
    ids_ptr,
    first_ptr,
    last_ptr,
    count,
    keep,
    WIDTH: tl.constexpr,  # a power of two >= count
    PDL: tl.constexpr = False,
):
    """What the LLM reads of a row. Grid: rows. Reads and writes what `unread_reference` says."""
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    length, read = tl.load(length_ptr + row), tl.load(cached_ptr + row)
    routed = tl.load(routed_ptr + row) != 0
    first = tl.where(routed, read, length)
    last = tl.minimum(tl.maximum(length - 1 - first, 0), count - 1)
    column = tl.arange(0, WIDTH)
    inside = column < count
    text = tokens_ptr + row * stride_tokens
    ids = load_between(text, length, first, column, inside)
    tl.store(ids_ptr + row * count + column, ids, mask=inside)
    tl.store(first_ptr + row, first)
    tl.store(last_ptr + row, row * count + last)
    tl.store(cached_ptr + row, tl.where(routed, tl.minimum(read + count, length - keep), read))


def route(
    value: Tensor,
    done: Tensor,
    length: Tensor,
    cached: Tensor,
    rate: Tensor,
    threshold: Tensor,
    metrics: Tensor,
    decisions: Tensor,
    routed: Tensor,
    report: Tensor,
    moving: bool,
) -> Tensor:
    """See `hybridgen.kernels.routing.route_reference`."""
    stands = torch.empty_like(done)
    decide[(len(length),)](
        value,
        value.stride(0),
        done,
        length,
        cached,
        rate,
        threshold,
        metrics,
        decisions,
        routed,
        report,
        report.stride(0),
        stands,
        MOVING=moving,
        WIDTH=metrics.shape[1],
        num_warps=4 if moving else 1,
        **_OPTIONS,
        **launch_options(),
    )
    return stands


def unread(
    tokens: Tensor, length: Tensor, routed: Tensor, cached: Tensor, count: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridgen.kernels.routing.unread_reference`."""
    ids = length.new_empty(len(length), count)
    first, last = torch.empty_like(length), torch.empty_like(length)
    advance[(len(length),)](
        tokens,
        tokens.stride(0),
        length,
        routed,
        cached,
        ids,
        first,
        last,
        count,
        keep,
        WIDTH=triton.next_power_of_2(count),
        num_warps=1,
        **_OPTIONS,
        **launch_options(),
    )
    return ids, first, last
