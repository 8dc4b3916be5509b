"""Verify a block of drafts against the LLM, and commit what was accepted.

The LLM has read K drafts after the last committed token and gives K + 1 logits rows per sequence.
Row i is its distribution p of the token at position length + i, given the drafts before it.

Coupled. The LLM makes its own choice y[i] in every row, with the noise it would use alone; drafts
are accepted while they equal it. The text is the LLM's own with that seed, to the token, whatever
was drafted; the draft uses the same noise, so that it mostly agrees (Daliri, Musco and Suresh
2024, "Coupling without communication and drafter-invariant speculative decoding"). Greedy is the
case T = 0.

Rejection. Draft x from q is accepted iff u * q(x) < p(x) (u uniform, and p(x) > 0); at the first
rejection the token is drawn from max(p - q, 0), normalised; after K acceptances one more comes
from p. The text is distributed as the LLM's own (Leviathan, Kalman and Matias 2023; Chen et al.
2023). p and q are the filtered distributions of sampling.py, q as the draft was drawn from: its
own logits row and truncation. A draft beyond the LLM's vocabulary has p = 0, and tokens beyond the
draft's have q = 0. Where the residual has no mass, or q is NaN, the token is drawn from p.

Either tells, where it is asked to, what made the LLM's rows distributions.

Draws: u on the stream ACCEPT (token 0), the residual as argmax of log(p - q) + Gumbel on RESIDUAL,
the last token as `sample` on TARGET, all at the position they decide. A position is decided once,
so each number is used once.

Shapes: logits [B, M, V] float32, bfloat16 or float16, ids and positions int64, sampling float64
[B, 4], seed and length [B]. Returned are tokens [B, K + 1] (meaningless from count on, but ids of
the vocabulary), count int64 [B] from 1 to K + 1, and broken bool [B]: one of the rows up to count
was NaN, +inf or -inf throughout. Inputs are read only; `commit` alone writes texts, in place.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.philox import ACCEPT, RESIDUAL, TARGET, uniform
from hybridgen.kernels.registry import define
from hybridgen.kernels.sampling import (
    LARGEST,
    LOG_Z,
    TAU,
    Bools,
    Doubles,
    FilteredRows,
    Floats,
    Integers,
    first_best,
    float_rows,
    parameters,
    row_starts,
    sample_rows,
)

SOURCE_SLM, SOURCE_LLM, SOURCE_LOOKUP = 1, 2, 3
"""Who wrote a token: a lookup found it in the text itself."""

LENGTH, FLAGS, PENDING, NOTE, HEAD, WINDOW = 0, 1, 2, 3, 4, 32
"""A row's report: its length, its flags, two numbers that are the round's own, its last tokens.

The token of position p is at HEAD + p % WINDOW, plus its writer times WRITER: whoever reads a
report at least every WINDOW tokens misses none.
"""
DONE, BROKEN = 1, 2
WRITER = 1 << 32

Verdict: TypeAlias = tuple[Tensor, Tensor, Tensor]


def _leading(match: Bools) -> Integers:
    """How many of the first columns are true, [B], of match [B, K]."""
    mismatch = np.ones((match.shape[0], match.shape[1] + 1), np.bool_)
    np.logical_not(match, out=mismatch[:, :-1])
    leading: Integers = mismatch.argmax(axis=1)
    return leading


def _verdict(tokens: Integers, accepted: Integers, log_z: Floats) -> Verdict:
    column = np.arange(tokens.shape[1])
    read = np.isnan(log_z.reshape(tokens.shape)) & (column <= accepted[:, None])
    return (
        torch.from_numpy(tokens),
        torch.from_numpy(accepted + 1),
        torch.from_numpy(read.any(axis=1)),
    )


def verify_coupled_reference(
    target_logits: Tensor,
    drafts: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    """The LLM's own tokens [B, K + 1], how many of them stand [B], and the broken rows [B].

    target_truncation    float32 [B, K + 1, 3], dense, or None: written, as of `sample`
    """
    batch, columns, vocab = target_logits.shape
    position = (length.numpy()[:, None] + np.arange(columns)).reshape(-1)
    chosen, truncation = sample_rows(
        float_rows(target_logits.reshape(-1, vocab)),
        parameters(sampling, columns),
        np.repeat(seed.numpy(), columns),
        position,
        TARGET,
    )
    tokens = chosen.reshape(batch, columns)
    accepted = _leading(tokens[:, :-1] == drafts.numpy())
    _tell(truncation, target_truncation)
    return _verdict(tokens, accepted, truncation[:, LOG_Z])


def _tell(truncation: Floats, told: Tensor | None) -> None:
    if told is not None:
        told.numpy()[:] = truncation.reshape(told.shape)


def _verify_coupled_fake(
    target_logits: Tensor,
    drafts: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    batch, columns, _ = target_logits.shape
    count = length.new_empty(batch)
    tokens = drafts.new_empty((batch, columns))
    return tokens, count, torch.empty_like(count, dtype=torch.bool)


def _probability(logit: Floats, truncation: Floats, temperature: Doubles) -> Doubles:
    """exp((logit - max) / T - log_z) where the logit is kept, else 0; NaN where log_z is."""
    score = (logit - truncation[..., LARGEST].astype(np.float64)) / temperature
    p = np.exp(score - truncation[..., LOG_Z])
    return np.where(logit < truncation[..., TAU], 0.0, p)


def _at(logits: Floats, row: Integers, column: Integers, token: Integers) -> Floats:
    """logits[row, column, token], and -inf for a token beyond the vocabulary."""
    vocab = logits.shape[-1]
    value: Floats = logits[row, column, np.minimum(token, vocab - 1)]
    return np.where(token < vocab, value, np.float32(-np.inf))


def verify_rejection_reference(
    target_logits: Tensor,
    draft_logits: Tensor,
    drafts: Tensor,
    draft_truncation: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    """Accepted drafts and the token after them [B, K + 1], their count [B], broken rows [B].

    draft_logits [B, K, V']; draft_truncation float32 [B, K, 3], as of `sample`; target_truncation
    as of `verify_coupled`.
    """
    batch, columns, vocab = target_logits.shape
    params = parameters(sampling, columns)
    if columns == 1 or params.all_greedy:
        return verify_coupled_reference(
            target_logits, drafts, sampling, seed, length, target_truncation
        )
    rows = float_rows(target_logits.reshape(-1, vocab))
    p = FilteredRows(rows, params)
    q = _Draft(float_rows(draft_logits), draft_truncation.numpy())
    x, seeds, start = drafts.numpy(), seed.numpy(), length.numpy()
    # NaN and inf among the draft's numbers end in "reject" and in "draw from p".
    with np.errstate(all="ignore"):
        accepted = _leading(_accept(p, q, x, seeds, start))
        row, token = p.kept(np.arange(batch) * columns + accepted)
        score = _scores(p, q, accepted, row, token)
    stream = np.where(accepted < columns - 1, RESIDUAL, TARGET)
    position = start + accepted
    score += p.noise(row * columns, token, seeds[row], position[row], stream[row])
    tokens = np.zeros((batch, columns), np.int64)
    np.copyto(tokens[:, :-1], x, where=np.arange(columns - 1) < accepted[:, None])
    tokens[np.arange(batch), accepted] = first_best(score, row, token)
    _tell(p.truncation, target_truncation)
    return _verdict(tokens, accepted, p.log_z)


class _Draft(NamedTuple):
    """The distributions that the drafts were drawn from."""

    logits: Floats  # [B, K, V']
    truncation: Floats  # [B, K, 3]

    def probability(
        self, row: Integers, column: Integers, token: Integers, temperature: Doubles
    ) -> Doubles:
        logit = _at(self.logits, row, column, token)
        return _probability(logit, self.truncation[row, column], temperature)


def _accept(
    p: FilteredRows, q: _Draft, drafts: Integers, seed: Integers, length: Integers
) -> Bools:
    """Which drafts [B, K] pass u * q < p, each by itself; in greedy rows, which are the argmax."""
    batch, drafted = drafts.shape
    row, column = np.arange(batch)[:, None], np.arange(drafted)
    at = row * (drafted + 1) + column
    logits = p.rows.reshape(batch, drafted + 1, -1)
    p_x = _probability(_at(logits, row, column, drafts), p.truncation[at], p.params.temperature[at])
    q_x = q.probability(row, column, drafts, p.params.temperature[at])
    u = uniform(seed[:, None], length[:, None] + column, 0, ACCEPT)
    accept: Bools = (u * q_x < p_x) & (p_x > 0)
    if p.params.greedy is not None:
        accept = np.where(p.params.greedy[at], drafts == logits[:, :-1].argmax(axis=2), accept)
    return accept


def _scores(
    p: FilteredRows, q: _Draft, accepted: Integers, row: Integers, token: Integers
) -> Doubles:
    """Log-weights of the kept tokens [n] at the deciding position of each row."""
    drafted = q.truncation.shape[1]
    at = row * (drafted + 1) + accepted[row]
    score = p.score(at, token)
    rejected = accepted < drafted
    if p.params.greedy is not None:
        rejected &= ~p.params.greedy[:: drafted + 1]
    if not rejected.any():
        return score
    temperature = p.params.temperature[at]
    p_x = np.exp(score - p.log_z[at])
    q_x = q.probability(row, np.minimum(accepted, drafted - 1)[row], token, temperature)
    residual = np.maximum(p_x - q_x, 0.0)
    mass = np.add.reduceat(residual, row_starts(row))
    usable = rejected & (mass > 0) & (mass < np.inf)
    return np.where(usable[row], np.log(residual), score)


def _verify_rejection_fake(
    target_logits: Tensor,
    draft_logits: Tensor,
    drafts: Tensor,
    draft_truncation: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    return _verify_coupled_fake(target_logits, drafts, sampling, seed, length)


def commit_reference(
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
    """Append new_tokens[b, :count[b]] to tokens[b] at length[b], in place.

    tokens int64 [B, T], length int64 [B], done bool [B] and report int64 [B, HEAD + WINDOW] are
    written; new_tokens int64 [B, N], N at most WINDOW, count int64 or bool [B] (None: N of every
    row), limit int64 [B] (the largest length) and eos int64 [B, E] (padded with -1) are read. The
    last of a row's tokens is marked as by ``writer``, those before it as drafts, by ``drafter``.
    The block ends with its first eos, and at the limit; either sets done. A row that was done
    before is not touched at all; a broken one gets done, the flags of its report, and nothing else.

    A row is broken where broken bool [B] says so, and where one of truncation float32 [B, ..., 3],
    what tokens were drawn from, is that of a broken row; either may be None.
    """
    at, finished = length.numpy(), done.numpy()
    block, most = new_tokens.numpy(), limit.numpy()
    column = np.arange(block.shape[1])
    counts = np.full(len(at), len(column)) if count is None else count.numpy()
    failed = _broken(broken, truncation) & ~finished
    live = ~(failed | finished)

    ends = (block[:, :, None] == eos.numpy()[:, None, :]).any(axis=2)
    ends &= column < counts[:, None]
    ended = ends.any(axis=1)
    wanted = np.where(ended, ends.argmax(axis=1) + 1, counts)
    emitted = np.maximum(np.minimum(wanted, most - at), 0) * live

    row, offset = (column < emitted[:, None]).nonzero()
    place = (row, at[row] + offset)
    tokens.numpy()[place] = new = block[row, offset]
    told = report.numpy()
    marks = np.where(offset == counts[row] - 1, writer, drafter) * WRITER
    told[row, HEAD + place[1] % WINDOW] = new + marks
    at += emitted
    finished |= failed | (live & (ended | (at >= most)))  # an eos cut off leaves the limit reached
    told[:, LENGTH] = np.where(live, at, told[:, LENGTH])
    told[:, FLAGS] = np.where(live, finished, told[:, FLAGS]) | (failed * (DONE | BROKEN))


def _broken(broken: Tensor | None, truncation: Tensor | None) -> Bools:
    """Which rows are, by either; [B], or [] where nothing can tell."""
    found: Bools = np.array(False) if broken is None else broken.numpy()
    if truncation is not None:
        log_z = truncation.numpy()[..., LOG_Z]
        found = found | np.isnan(log_z.reshape(len(log_z), -1).sum(1))  # none is infinite
    return found


def _commit_fake(
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
    return None


verify_coupled = define(
    "verify_coupled(Tensor target_logits, Tensor drafts, Tensor sampling, Tensor seed,"
    " Tensor length, Tensor(a!)? target_truncation=None) -> (Tensor, Tensor, Tensor)",
    verify_coupled_reference,
    _verify_coupled_fake,
    "verify_triton:verify_coupled",
    "verify_numba:verify_coupled",
)
verify_rejection = define(
    "verify_rejection(Tensor target_logits, Tensor draft_logits, Tensor drafts,"
    " Tensor draft_truncation, Tensor sampling, Tensor seed, Tensor length,"
    " Tensor(a!)? target_truncation=None) -> (Tensor, Tensor, Tensor)",
    verify_rejection_reference,
    _verify_rejection_fake,
    "verify_triton:verify_rejection",
    "verify_numba:verify_rejection",
)
commit = define(
    "commit(Tensor(a!) tokens, Tensor(b!) length, Tensor(c!) done, Tensor(d!) report,"
    " Tensor new_tokens, Tensor? count, int writer, int drafter, Tensor? broken, Tensor limit,"
    " Tensor eos, Tensor? truncation) -> ()",
    commit_reference,
    _commit_fake,
    "commit_triton:commit",
    "commit_numba:commit",
)
