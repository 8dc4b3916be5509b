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
own logits row, tau and log_z. A draft beyond the LLM's vocabulary has p = 0, and tokens beyond the
draft's have q = 0. Where the residual has no mass, or q is NaN, the token is drawn from p.

Draws: u on the stream ACCEPT (token 0), the residual as argmax of log(p - q) + Gumbel on RESIDUAL,
the last token as `sample` on TARGET, all at the position they decide. A position is decided once,
so each number is used once.

Shapes: logits float32 or bfloat16 [B, M, V], ids and positions int64, sampling float32 [B, 4],
seed and length [B]. Returned are tokens [B, K + 1] (meaningless from count on, but in [0, V)),
count int64 [B] from 1 to K + 1, and broken bool [B]: one of the rows up to count was NaN, +inf or
-inf throughout. Inputs are read only; `commit` alone writes, in place.
"""

import numpy as np
import torch

from hybridgen.kernels.philox import ACCEPT, RESIDUAL, TARGET, gumbel, uniform
from hybridgen.kernels.registry import define
from hybridgen.kernels.sampling import (
    TEMPERATURE,
    Bools,
    Doubles,
    FilteredRows,
    Floats,
    Integers,
    first_argmax,
    float_rows,
    sample_rows,
)

SOURCE_PROMPT, SOURCE_SLM, SOURCE_LLM = 0, 1, 2
"""Who wrote a token."""
ROUNDS, DRAFTED, ACCEPTED, ACCEPTED_AT = 0, 1, 2, 3
"""Columns of `counters`; ACCEPTED_AT + i counts the rounds whose draft i was emitted, i < 16."""
COUNTERS = 19

Verdict = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _leading(match: Bools) -> Integers:
    """How many of the first columns are true, [B], of match [B, K]."""
    mismatch = np.ones((match.shape[0], match.shape[1] + 1), np.bool_)
    np.logical_not(match, out=mismatch[:, :-1])
    return mismatch.argmax(axis=1)


def _verdict(tokens: Integers, accepted: Integers, log_z: Floats) -> Verdict:
    column = np.arange(tokens.shape[1])
    read = np.isnan(log_z.reshape(tokens.shape)) & (column <= accepted[:, None])
    return (
        torch.from_numpy(tokens),
        torch.from_numpy(accepted + 1),
        torch.from_numpy(read.any(axis=1)),
    )


def _per_row(x: torch.Tensor, columns: int) -> Floats:
    """Sampling parameters of each of the B * columns rows."""
    return np.repeat(x.numpy(), columns, axis=0)


def _verify_coupled(
    target_logits: torch.Tensor,
    drafts: torch.Tensor,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    length: torch.Tensor,
) -> Verdict:
    """The LLM's own tokens [B, K + 1], how many of them stand [B], and the broken rows [B]."""
    batch, columns, vocab = target_logits.shape
    position = (length.numpy()[:, None] + np.arange(columns)).reshape(-1)
    chosen, _, log_z = sample_rows(
        float_rows(target_logits.reshape(-1, vocab)),
        _per_row(sampling, columns),
        np.repeat(seed.numpy(), columns),
        position,
        TARGET,
    )
    tokens = chosen.reshape(batch, columns)
    return _verdict(tokens, _leading(tokens[:, :-1] == drafts.numpy()), log_z)


def _verify_coupled_fake(
    target_logits: torch.Tensor,
    drafts: torch.Tensor,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    length: torch.Tensor,
) -> Verdict:
    batch, columns, _ = target_logits.shape
    count = length.new_empty(batch)
    tokens = drafts.new_empty((batch, columns))
    return tokens, count, torch.empty_like(count, dtype=torch.bool)


def _probability(logit: Floats, tau: Floats, log_z: Floats, temperature: Doubles) -> Doubles:
    """p = exp(logit / T - log_z) where the logit is kept, else 0; NaN where log_z is."""
    p: Doubles = np.where(logit < tau, 0.0, np.exp(logit / temperature - log_z))
    return p


def _gather(rows: Floats, token: Integers) -> Floats:
    """rows[..., token] with one token a row; -inf for tokens beyond the row."""
    vocab = rows.shape[-1]
    index = np.minimum(token, vocab - 1)[..., None]
    value: Floats = np.take_along_axis(rows, index, axis=-1)[..., 0]
    return np.where(token < vocab, value, np.float32(-np.inf))


def _verify_rejection(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor,
    drafts: torch.Tensor,
    draft_tau: torch.Tensor,
    draft_log_z: torch.Tensor,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    length: torch.Tensor,
) -> Verdict:
    """Accepted drafts and the token after them [B, K + 1], their count [B], broken rows [B]."""
    batch, columns, vocab = target_logits.shape
    drafted = columns - 1
    if drafted == 0 or not sampling[:, TEMPERATURE].any():
        return _verify_coupled(target_logits, drafts, sampling, seed, length)
    with np.errstate(all="ignore"):  # NaN and inf from the draft end in "reject" and "draw from p"
        p = FilteredRows(float_rows(target_logits.reshape(-1, vocab)), _per_row(sampling, columns))
        q_logits = draft_logits.detach().float().numpy()
        q_tau, q_log_z = draft_tau.numpy(), draft_log_z.numpy()
        temperature = p.temperature.reshape(batch, columns)[:, :1]
        greedy = p.greedy.reshape(batch, columns)[:, 0]
        x, seeds, start = drafts.numpy(), seed.numpy(), length.numpy()

        row_shape = (batch, columns)
        p_x = _probability(
            _gather(p.rows.reshape(batch, columns, vocab)[:, :-1], x),
            p.tau.reshape(row_shape)[:, :-1],
            p.log_z.reshape(row_shape)[:, :-1],
            temperature,
        )
        q_x = _probability(_gather(q_logits, x), q_tau, q_log_z, temperature)
        position = start[:, None] + np.arange(drafted)
        u = uniform(seeds[:, None], position, 0, ACCEPT)
        accept = (u * q_x < p_x) & (p_x > 0)
        if greedy.any():
            choice = p.rows.reshape(batch, columns, vocab)[:, :-1].argmax(axis=-1)
            accept = np.where(greedy[:, None], x == choice, accept)
        accepted = _leading(accept)

        # The row that decides the next token: the rejected position, or the one after all drafts.
        rejected = (accepted < drafted) & ~greedy
        deciding = np.arange(batch) * columns + accepted
        last = np.minimum(accepted, drafted - 1)
        each = np.arange(batch)
        support = p.rows[deciding] >= p.tau[deciding, None]
        row, token = np.divmod(np.flatnonzero(support), vocab)
        at = deciding[row]
        score = p.score(at, token)
        p_token = _probability(p.rows[at, token], p.tau[at], p.log_z[at], temperature[row, 0])
        q_vocab = q_logits.shape[-1]
        q_logit = q_logits[row, last[row], np.minimum(token, q_vocab - 1)]
        q_token = _probability(
            np.where(token < q_vocab, q_logit, np.float32(-np.inf)),
            q_tau[each, last][row],
            q_log_z[each, last][row],
            temperature[row, 0],
        )
        residual = np.maximum(p_token - q_token, 0.0)
        mass = np.add.reduceat(residual, np.flatnonzero(np.diff(row, prepend=-1)))
        from_residual = rejected & (mass > 0) & (mass < np.inf)
        score = np.where(from_residual[row], np.log(residual), score)
        stream = np.where(accepted < drafted, RESIDUAL, TARGET)
        score = score + gumbel(seeds[row], (start + accepted)[row], token, stream[row])
        following = first_argmax(np.where(greedy[row], 0.0, score), row, token)

        tokens = np.where(np.arange(columns) < accepted[:, None], np.pad(x, ((0, 0), (0, 1))), 0)
        tokens[each, accepted] = following
        return _verdict(tokens, accepted, p.log_z)


def _verify_rejection_fake(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor,
    drafts: torch.Tensor,
    draft_tau: torch.Tensor,
    draft_log_z: torch.Tensor,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    length: torch.Tensor,
) -> Verdict:
    return _verify_coupled_fake(target_logits, drafts, sampling, seed, length)


def _commit(
    tokens: torch.Tensor,
    length: torch.Tensor,
    done: torch.Tensor,
    source: torch.Tensor,
    counters: torch.Tensor,
    broken_flag: torch.Tensor,
    new_tokens: torch.Tensor,
    count: torch.Tensor,
    drafted: int,
    new_source: torch.Tensor,
    broken: torch.Tensor,
    limit: torch.Tensor,
    eos: torch.Tensor,
) -> None:
    """Append new_tokens[b, :count[b]] to tokens[b] at length[b], in place.

    tokens int64 [B, T], length int64 [B], done bool [B], source int8 [B, T], counters int64
    [B, COUNTERS] and broken_flag bool [B] are written; new_tokens int64 and new_source int8 [B, N],
    count int64 [B], broken bool [B], limit int64 [B] (the largest length) and eos int64 [B, E]
    (padded with -1) are read. The block ends with its first eos, and at the limit; either sets
    done. A row that was done before is not touched at all; a broken one gets done and broken_flag
    and nothing else. Only emitted tokens are counted.
    """
    at, finished, stats = length.numpy(), done.numpy(), counters.numpy()
    block, writer = new_tokens.numpy(), new_source.numpy()
    column = np.arange(block.shape[1])
    live = ~finished
    failed = live & broken.numpy()
    live &= ~failed

    ends = (block[:, :, None] == eos.numpy()[:, None, :]).any(axis=2)
    ends &= column < count.numpy()[:, None]
    ended = ends.any(axis=1)
    wanted = np.where(ended, ends.argmax(axis=1) + 1, count.numpy())
    room = limit.numpy() - at
    emitted = np.where(live, np.clip(wanted, 0, np.maximum(room, 0)), 0)

    written = column < emitted[:, None]
    row, offset = written.nonzero()
    where = at[row] + offset
    tokens.numpy()[row, where] = block[row, offset]
    source.numpy()[row, where] = writer[row, offset]
    at += emitted
    finished |= failed | live & ((emitted == room) | (room < 0) | ended & (emitted == wanted))
    broken_flag.numpy()[failed] = True

    from_slm = written & (writer == SOURCE_SLM)
    stats[:, ROUNDS] += live
    stats[:, DRAFTED] += drafted * live
    stats[:, ACCEPTED] += from_slm.sum(axis=1)
    stats[:, ACCEPTED_AT : ACCEPTED_AT + block.shape[1]] += from_slm[:, : COUNTERS - ACCEPTED_AT]


def _commit_fake(
    tokens: torch.Tensor,
    length: torch.Tensor,
    done: torch.Tensor,
    source: torch.Tensor,
    counters: torch.Tensor,
    broken_flag: torch.Tensor,
    new_tokens: torch.Tensor,
    count: torch.Tensor,
    drafted: int,
    new_source: torch.Tensor,
    broken: torch.Tensor,
    limit: torch.Tensor,
    eos: torch.Tensor,
) -> None:
    return None


verify_coupled = define(
    "verify_coupled(Tensor target_logits, Tensor drafts, Tensor sampling, Tensor seed,"
    " Tensor length) -> (Tensor, Tensor, Tensor)",
    _verify_coupled,
    _verify_coupled_fake,
)
verify_rejection = define(
    "verify_rejection(Tensor target_logits, Tensor draft_logits, Tensor drafts, Tensor draft_tau,"
    " Tensor draft_log_z, Tensor sampling, Tensor seed, Tensor length)"
    " -> (Tensor, Tensor, Tensor)",
    _verify_rejection,
    _verify_rejection_fake,
)
commit = define(
    "commit(Tensor(a!) tokens, Tensor(b!) length, Tensor(c!) done, Tensor(d!) source,"
    " Tensor(e!) counters, Tensor(f!) broken_flag, Tensor new_tokens, Tensor count, int drafted,"
    " Tensor new_source, Tensor broken, Tensor limit, Tensor eos) -> ()",
    _commit,
    _commit_fake,
)
