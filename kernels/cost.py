"""What a call of an op moves and computes at least: the floor that its time is held to.

    read, written   bytes between memory and chip: every tensor once, and of those that are looked
                    up in (an embedding, a cache, a text) what is looked up
    flops           of the products, two a multiply-add; nothing else here comes near a limit

What one launch of an op leaves for the next stays in the L2 cache and is not counted, nor is a row
of logits that the second sweep reads again. Launches and grids are not predicted at all: they are
recorded from the launchers (`benchmarks/meter.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cost(NamedTuple):
    """Bytes and floating-point operations."""

    read: int
    written: int
    flops: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written


def cost(name: str, arguments: Sequence[Any], results: Any, context: int) -> Cost:
    """Of the op ``name`` on ``arguments``, tensors of any device, which gave ``results``.

    ``context`` are the tokens that stand in every row before those of the call: a tensor's shape
    does not tell them. Raises KeyError for an op that is not in `COSTS`.
    """
    schema = getattr(torch.ops.hybridgen, name).default._schema
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given |= dict(zip(given, arguments, strict=False))  # without those left at their defaults
    made = nbytes([results] if isinstance(results, Tensor) else results or ())
    return COSTS[name](given, made, context)


def nbytes(values: Iterable[Any]) -> int:
    """Of the numbers in the tensors among ``values``; those of an expanded axis count once."""
    return sum(
        x.element_size()
        * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
        for x in values
        if isinstance(x, Tensor)
    )


Given = Mapping[str, Any]  # an op's arguments, by the names of its schema


def _whole(given: Given, results: int, context: int) -> Cost:
    return Cost(nbytes(given.values()), results)


def _embed(given: Given, results: int, context: int) -> Cost:
    """The rows looked up are as large as the results."""
    return Cost(nbytes([given["tokens"], given["start"]]) + results, results)


def _product(given: Given, results: int, context: int) -> Cost:
    """Each row of x meets every number of the weight, which takes one byte as int8."""
    flops = 2 * given["x"].shape[0] * given["weight"].numel()
    return Cost(nbytes(given.values()), results, flops)


def _attention(given: Given, results: int, context: int) -> Cost:
    """Keys and values that the call writes itself are read from the L2 cache."""
    qkv, cache, window = given["qkv"], given["cache"], given["window"]
    _, kv_heads, _, _, dim = cache.shape
    batch, count = len(given["start"]), len(given["cos"])
    tokens = count // batch
    before = min(context, window - 1) if window else context
    key = 2 * kv_heads * dim * cache.element_size()  # with its value
    pairs = tokens * before + tokens * (tokens + 1) // 2  # of a query and a key that it sees
    once = nbytes(value for name, value in given.items() if name != "cache")
    q_width = qkv.shape[1] - 2 * kv_heads * dim
    return Cost(once + batch * before * key, results + count * key, 4 * batch * pairs * q_width)


def _verify_rejection(given: Given, results: int, context: int) -> Cost:
    """Of the drafts' logits it reads those of the drafts, and one row of a sequence whole."""
    draft = given["draft_logits"]
    batch, drafts, vocab = draft.shape
    once = nbytes(value for name, value in given.items() if name != "draft_logits")
    return Cost(once + batch * (vocab + drafts) * draft.element_size(), results)


def _commit(given: Given, results: int, context: int) -> Cost:
    """It writes the new tokens into text and report, which it does not read."""
    read = nbytes(value for name, value in given.items() if name not in ("tokens", "report"))
    length = nbytes([given["length"]])  # it stands in the report too, and so do flags
    return Cost(read, 2 * nbytes([given["new_tokens"]]) + 3 * length + nbytes([given["done"]]))


def _lookup(given: Given, results: int, context: int) -> Cost:
    """Each token of the text is read once; places before it then come from the L1 cache."""
    tokens, length = given["tokens"], given["length"]
    read = len(length) * context * tokens.element_size() + nbytes([length])
    return Cost(read, results + nbytes([given["drafts"]]))


def _penalize(given: Given, results: int, context: int) -> Cost:
    """A penalty reads the text; the logits of its ids are in the L2 cache, and so are stores."""
    tokens, penalties = given["tokens"], [given["repetition"], given["ngram"]]
    reads = any(penalty is not None for penalty in penalties)
    text = len(tokens) * context * tokens.element_size() if reads else 0
    once = nbytes(value for name, value in given.items() if name not in ("tokens", "early"))
    return Cost(once + text, results)


def _sample_into(given: Given, results: int, context: int) -> Cost:
    """Of what it writes it reads nothing."""
    written = [given[name] for name in ("token", "truncation", "kept")]
    return Cost(nbytes(given.values()) - nbytes(written), nbytes(written))


def _window(given: Given, results: int, context: int) -> Cost:
    """It copies some tokens."""
    ids, places = nbytes([given["ids"]]), nbytes([given["positions"]])
    return Cost(ids + nbytes([given["length"], given["start"]]), ids + places)


def _unread(given: Given, results: int, context: int) -> Cost:
    """It copies some tokens: of the results, all but two numbers a row."""
    numbers = nbytes([given["cached"]])
    read = results - 2 * numbers + nbytes([given["length"], given["routed"], given["cached"]])
    return Cost(read, results + numbers)


def _route(given: Given, results: int, context: int) -> Cost:
    """A metric is added to those that it reads; of the report it writes two numbers."""
    state = ("threshold", "decisions") if given["moving"] else ()
    read = ("value", "done", "length", "cached", "rate", "threshold", "metrics", "decisions")
    skipped = () if given["moving"] else ("rate", "metrics", "decisions")
    metric = nbytes([given["value"]]) if given["moving"] else 0
    told = nbytes([given["length"]]) * (2 if given["moving"] else 1)
    written = nbytes([given[name] for name in (*state, "routed")]) + metric + told
    return Cost(nbytes(given[name] for name in read if name not in skipped), results + written)


def _cache_write(given: Given, results: int, context: int) -> Cost:
    """It writes keys and values where ``cache`` says, and reads nothing there."""
    read = nbytes(value for name, value in given.items() if name != "cache")
    return Cost(read, results + nbytes([given["cache"]]))


COSTS: dict[str, Callable[[Given, int, int], Cost]] = {
    "embed": _embed,
    "rms_norm": _whole,
    "norm_linear": _product,
    "norm_gated_linear": _product,
    "linear_residual": _product,
    "attention": _attention,
    "filter_logits": _whole,
    "sample": _whole,
    "sample_into": _sample_into,
    "entropy": _whole,
    "logtoku": _whole,
    "sample_measured": _whole,
    "verify_coupled": _whole,
    "verify_rejection": _verify_rejection,
    "commit": _commit,
    "lookup": _lookup,
    "penalize": _penalize,
    "window": _window,
    "route": _route,
    "unread": _unread,
    "cache_write": _cache_write,
}
