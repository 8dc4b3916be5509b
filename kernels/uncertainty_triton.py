"""`uncertainty.py` in Triton: the sweeps of candidates_triton.py, then one program a row.

The second sweep adds up, over the vocabulary, w and w * -y of the integer weights w = 2**44 e**x
and their exponents y = x / ln 2. In integers, so in any order:

    Z = sum w / 2**44,    H = log Z - sum p x = log Z + ln 2 * sum(w * -y) / sum w

The k largest logits are among the candidates, unless too many are equal; `_largest` takes them one
value after the other, with how often it occurs. digamma of logits is shifted up to where its
asymptotic series holds, psi(x) = psi(x + 6) - sum 1 / (x + i), psi(x) ~ log x - 1/2x - 1/12x^2
+ 1/120x^4 - 1/252x^6 (Abramowitz and Stegun 6.3.18), x >= 1: wrong by 2e-9 at most, before
rounding. Of a probability a, psi(2) - psi(1 + a) = (1 - a) q(a), q a polynomial: of the differences
between near equals nothing is lost, and a sure token has an AU of exactly 0.

`sample_measured` shares both sweeps with the sampling, and adds one launch of a program a row.

Predicted on an H100, one row of 151936: 2.5 + 3.5 us for the sweeps and 3 us for a program that
reads a hundred candidates: 9 us each for entropy and LogTokU, 14 us for `sample_measured`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.candidates_triton import (
    CAPACITY,
    COUNT,
    ENTROPY_MASS,
    ENTROPY_SUM,
    FIELDS,
    Logits,
    Scratch,
    filter_of,
    is_broken,
    load_logits,
    load_maxima,
    logits_of,
    row_of,
    sweep,
)
from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.sampling_triton import (
    ONE_PROGRAM_A_ROW,
    Draws,
    sample_rows,
)
from hybridgen.kernels.truncation_triton import Drawn, load_truncation
from hybridgen.kernels.uncertainty import MEASURES, PROBS
from hybridgen.kernels.weights import WEIGHT_BITS

_CAPACITY = tl.constexpr(CAPACITY)
_UNIT = tl.constexpr(2.0**-WEIGHT_BITS)
_PROBS = tl.constexpr(PROBS)
_LN_2 = tl.constexpr(0.6931471805599453)
_SLOTS = 16


class Sampled(NamedTuple):
    """Of what the two log-probabilities are."""

    sampling: Tensor  # float64 [rows, 4]
    stride: int
    truncation: Tensor  # float32 [rows, 3]
    token: Tensor  # int64 [rows]


class Measures(NamedTuple):
    """What a launch fills, float32 [rows] of one stride each; it leaves out what is None."""

    logprob: Tensor | None = None  # with full_logprob or not at all
    full_logprob: Tensor | None = None
    entropy: Tensor | None = None
    aleatoric: Tensor | None = None  # with epistemic or not at all
    epistemic: Tensor | None = None


@triton.jit
def _digamma(x):
    """psi(x) of float32 x >= 1."""
    shift = 1.0 / x
    for i in tl.static_range(1, 6):
        shift += 1.0 / (x + i)
    x += 6.0
    square = 1.0 / (x * x)
    series = square * (1.0 / 12 - square * (1.0 / 120 - square * (1.0 / 252)))
    return tl.log(x) - 0.5 / x - series - shift


@triton.jit
def _doubt(a):
    """psi(2) - psi(1 + a) of float32 probabilities: 1 at 0, 0 at 1.

    A relative minimax fit of degree 8, 1.2e-7; with the roundings of its float32 steps 2e-7.
    """
    t = a - 0.5
    q = t * 0.01736263607742422 - 0.025600262792112454
    q = q * t + 0.02889928238082066
    q = q * t - 0.044267604351921536
    q = q * t + 0.06998147596089485
    q = q * t - 0.109894553895858
    q = q * t + 0.17994025305251
    q = q * t - 0.32442537595660276
    q = q * t + 0.7725887333938108
    return (1.0 - a) * q


@triton.jit
def _largest(logits_ptr, count, k, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """The k largest of the ``count`` logits at ``logits_ptr``, [SLOTS] padded with -inf."""
    slot = tl.arange(0, SLOTS)
    values = tl.full([SLOTS], float("-inf"), tl.float32)
    filled = 0
    before = float("inf")
    while (filled < k) & (before > float("-inf")):
        value = float("-inf")
        times = 0
        for first in range(0, count, BLOCK):
            x = load_logits(logits_ptr, first + tl.arange(0, BLOCK), count)
            x = tl.where(x < before, x, float("-inf"))
            largest = tl.max(x, 0)
            equal = tl.sum((x == largest).to(tl.int32), 0)
            times = tl.where(largest > value, equal, times + tl.where(largest == value, equal, 0))
            value = tl.maximum(value, largest)
        values = tl.where((slot >= filled) & (slot < filled + times), value, values)
        filled += times
        before = value
    return tl.where(slot < k, values, float("-inf"))


@triton.jit
def _logtoku(top, k, EVIDENCE: tl.constexpr, SLOTS: tl.constexpr):
    """AU and EU of the k largest logits ``top`` [SLOTS]."""
    used = tl.arange(0, SLOTS) < k
    evidence = tl.where(used, tl.maximum(top, 0.0), 0.0)
    total = tl.sum(evidence, 0)
    epistemic = k / (total + k)
    if EVIDENCE == _PROBS:
        weight = tl.where(used, tl.exp(top - tl.max(top, 0)), 0.0)
        share = weight / tl.sum(weight, 0)
        most = tl.where(k > 1, _doubt(1.0 / k), 1.0)
        aleatoric = tl.minimum(tl.maximum(tl.sum(share * _doubt(share), 0) / most, 0.0), 1.0)
    else:
        share = evidence / tl.where(total > 0, total, 1.0)
        spread = share * (_digamma(total + 1.0) - _digamma(evidence + 1.0))
        aleatoric = tl.sum(tl.where(used, spread, 0.0), 0)
    return aleatoric, epistemic


@triton.jit(do_not_specialize=["chunks", "k"])
def measure(
    logits,
    temperature_ptr,  # [rows]: of the entropy; None for 1
    scratch,
    sampled,  # None without log-probabilities
    measures,  # out
    stride_measures,
    vocab,
    chunks,
    k,
    EVIDENCE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Whatever of ``measures`` is asked for, of a row.

    Grid: rows. Reads what the sweeps left, of ``logits`` the token's, and the row where the
    candidates do not suffice; writes ``measures``.
    """
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    row_ptr = row_of(logits, row, 0)
    largest = tl.max(load_maxima(scratch.maxima, row, chunks), 0)
    broken = is_broken(largest)
    largest = tl.where(broken, 0.0, largest)
    nan = float("nan")
    record_ptr = scratch.record + row * FIELDS
    out = row * stride_measures
    if (measures.entropy is not None) | (measures.logprob is not None):
        mass = tl.maximum(tl.load(record_ptr + ENTROPY_MASS), 1).to(tl.float32) * _UNIT
    if measures.entropy is not None:
        spread = tl.load(record_ptr + ENTROPY_SUM).to(tl.float32) * _UNIT / mass
        entropy = tl.log(mass) + spread * _LN_2
        if temperature_ptr is not None:
            entropy = tl.where(tl.load(temperature_ptr + row) > 0, entropy, 0.0)
        tl.store(measures.entropy + out, tl.where(broken, nan, entropy))
    if measures.logprob is not None:
        heat, _, _, _, greedy = filter_of(sampled.sampling + row * sampled.stride, vocab)
        logit = tl.load(row_ptr + tl.load(sampled.token + row)).to(tl.float32)
        _, _, log_z = load_truncation(sampled.truncation, row)
        scaled = (logit.to(tl.float64) - largest) * heat - log_z
        logprob = tl.where(greedy, 0.0, scaled.to(tl.float32))
        tl.store(measures.logprob + out, tl.where(broken, nan, logprob))
        full = (logit - largest) - tl.log(mass)
        tl.store(measures.full_logprob + out, tl.where(broken, nan, full))
    if measures.aleatoric is not None:
        aleatoric, epistemic = nan, nan
        if (broken == 0) & (k > 0):
            count = tl.load(record_ptr + COUNT).to(tl.int32)
            everything = tl.load(scratch.threshold + row) == float("-inf")
            if (count <= _CAPACITY) & (everything | (count >= k)):
                top = _largest(scratch.candidates + row * _CAPACITY, count, k, SLOTS, 128)
            else:
                top = _largest(row_ptr, vocab, k, SLOTS, BLOCK)
            aleatoric, epistemic = _logtoku(top, k, EVIDENCE, SLOTS)
        tl.store(measures.aleatoric + out, aleatoric)
        tl.store(measures.epistemic + out, epistemic)


def _measure(
    logits: Logits,
    scratch: Scratch,
    measures: Measures,
    temperature: Tensor | None = None,
    sampled: Sampled | None = None,
    k: int = 0,
    evidence: int = PROBS,
) -> None:
    """Launch `measure`."""
    measure[(logits.rows,)](
        logits.address,
        temperature,
        scratch,
        sampled,
        measures,
        next(result.stride(0) for result in measures if result is not None),
        logits.vocab,
        logits.chunks,
        k,
        EVIDENCE=evidence,
        SLOTS=max(triton.next_power_of_2(k), _SLOTS),
        BLOCK=2048,
        **ONE_PROGRAM_A_ROW,
        **launch_options(),
    )


def entropy(logits: Tensor, temperature: Tensor) -> Tensor:
    """See `hybridgen.kernels.uncertainty.entropy_reference`."""
    rows = logits_of(logits.unsqueeze(1))
    result = torch.empty(rows.rows, dtype=torch.float32, device=logits.device)
    scratch = sweep(rows, None, temperature, entropy=True)
    _measure(rows, scratch, Measures(entropy=result), temperature)
    return result


def logtoku(logits: Tensor, k: int, evidence: int) -> tuple[Tensor, Tensor]:
    """See `hybridgen.kernels.uncertainty.logtoku_reference`."""
    rows = logits_of(logits.unsqueeze(1))
    k = min(k, rows.vocab)
    aleatoric = torch.empty(rows.rows, dtype=torch.float32, device=logits.device)
    epistemic = torch.empty_like(aleatoric)
    scratch = sweep(rows, None, None, least=k)
    measures = Measures(aleatoric=aleatoric, epistemic=epistemic)
    _measure(rows, scratch, measures, k=k, evidence=evidence)
    return aleatoric, epistemic


def sample_measured(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    k: int,
    evidence: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridgen.kernels.uncertainty.sample_measured_reference`."""
    rows = logits_of(logits.unsqueeze(1))
    k = min(k, rows.vocab)
    scratch = sweep(rows, sampling, None, least=k, entropy=True)
    token, truncation = drawn = Drawn.empty(rows)
    sample_rows(rows, sampling, scratch, drawn, Draws(seed, position, stream))
    sampled = Sampled(sampling, sampling.stride(0), truncation, token)
    result = torch.empty(rows.rows, MEASURES, dtype=torch.float32, device=logits.device)
    _measure(rows, scratch, Measures(*result.unbind(1)), None, sampled, k, evidence)
    return token, truncation, result
