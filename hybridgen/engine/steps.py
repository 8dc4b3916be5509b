"""The steps that every strategy's round is made of: read, sample, append.

`read` is the only place that calls a model, `append` the only one that commits tokens. Nothing here
decides on the host, reads a value back or allocates anything that grows with the context: the same
code runs eagerly on a CPU and is capturable on a GPU. A row that is done still computes, and
nothing of it changes. Feeding a token twice rewrites the same K/V, which is what lets rows of
different history share one shape.
"""

from collections.abc import Sequence

from torch import Tensor

from hybridgen.engine.model import Model
from hybridgen.engine.state import Forward, Rows, integers, moved
from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import sample
from hybridgen.kernels.verify import SOURCE_SLM, commit
from hybridgen.kernels.window import window


def read(rows: Rows, model: Model, tokens: Tensor, start: Tensor, drafted: bool = True) -> Tensor:
    """Logits [B, M, V] of ``model`` after ``tokens`` [B, M] from position ``start`` [B] on.

    One model of a pair may pad its vocabulary further than the other: ids that it has not are fed
    as its last one, and V ends with the LLM's vocabulary. The logits are as the hooks leave them;
    ``drafted`` tells them whether tokens may be drafts.
    """
    logits = model(embeddable(tokens, model, rows), start)
    if model.vocab_size > rows.vocab_size:
        logits = logits[:, :, : rows.vocab_size]
    for hook in rows.hooks:
        logits = hook(Forward(rows, model, tokens, start, drafted), logits)
    return logits


def embeddable(tokens: Tensor, model: Model, rows: Rows) -> Tensor:
    """Ids that ``model`` can embed."""
    if model.vocab_size >= rows.vocab_size:
        return tokens
    return tokens.clamp_max(model.vocab_size - 1)


def prefill(
    rows: Rows,
    model: Model,
    lengths: Sequence[int],
    places: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
) -> None:
    """Let ``model`` read the first ``lengths[i]`` tokens of row ``places[i]``, or of row i.

    starts    where it reads from; it has read those before
    """
    if not max(lengths):
        return
    tokens = rows.tokens[:, : max(lengths)]
    if places is not None and [*places] != [*range(len(tokens))]:
        index = moved(integers(places), tokens.device)
        tokens = tokens.index_select(0, index)
    model.prefill(embeddable(tokens, model, rows), lengths, places, starts)


def feed(rows: Rows, model: Model, count: int, start: Tensor | None = None) -> Tensor:
    """Read ``count`` tokens of each row: logits [B, count, V].

    start    from position start [B] on; behind a row's end, where nobody's tokens are, its last
             one is read. None: the last ``count`` of the row
    """
    length = rows.length
    ids, positions = length.new_empty(*length.shape, count), length.new_empty(1, *length.shape)
    window(rows.tokens, length, start, ids, positions)
    return read(rows, model, ids, positions.select(0, 0), drafted=False)


def sample_and_append(rows: Rows, logits: Tensor, active: Tensor | None, source: int) -> None:
    """Draw the next token from logits [B, V] and append it where ``active`` [B] bool, or to all."""
    token, truncation = sample(logits, rows.sampling, rows.seed, rows.length, TARGET)
    append(rows, token.unsqueeze(1), active, None, source, truncation=truncation)


def append(
    rows: Rows,
    new: Tensor,
    count: Tensor | None,
    broken: Tensor | None,
    source: int,
    drafter: int = SOURCE_SLM,
    truncation: Tensor | None = None,
) -> None:
    """Append new[b, :count[b]] to row b, up to its limit and its first eos.

    new         int64 [B, N]; the last of a row's tokens is by ``source``, the rest by ``drafter``
    count       int64 or bool [B]; None: N of every row. A row that is done gets none
    broken      bool [B]: nothing is appended, the row is done and marked. None: no row is
    truncation  float32 [B, ..., 3]: what tokens were drawn from (see `kernels.sampling`); where
                one is of broken logits, so is the row
    """
    commit(
        rows.tokens,
        rows.length,
        rows.done,
        rows.report,
        new,
        count,
        source,
        drafter,
        broken,
        rows.limit,
        rows.eos,
        truncation,
    )
