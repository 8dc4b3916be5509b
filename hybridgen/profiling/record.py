"""A profile of one call: its rounds keep what they see, and it is put together when all is over.

The text is the one that `generate` writes for the same arguments.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hybridgen.checks import quoted
from hybridgen.detokenizer import Detokenizer, decode
from hybridgen.engine.loop import Text
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.recording import DRAWN, JUDGED, NEVER, TOKEN
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU, Doubles
from hybridgen.kernels.uncertainty import EVIDENCE, logtoku
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_LOOKUP, SOURCE_SLM
from hybridgen.kernels.weights import bounded
from hybridgen.profiling.measuring import Kind, Recorded
from hybridgen.profiling.profile import ProfileResult, TokenProfile
from hybridgen.request import Request
from hybridgen.strategies.auto import Choice
from hybridgen.strategies.base import RoundStrategy
from hybridgen.strategies.estimates import MODEL
from hybridgen.strategies.speculative import Speculative

WRITERS = {SOURCE_SLM: "slm", SOURCE_LLM: "llm", SOURCE_LOOKUP: "lookup"}


class Recording:
    """What sees one call of a strategy from inside, see `strategies.base.Recorder`."""

    def __init__(self, strategy: RoundStrategy) -> None:
        self.kind = Kind(strategy.reads_slm, isinstance(strategy, Speculative))
        self.variant: Recorded | None = None
        self.text: Text | None = None

    def recorded(self, batch: Batch) -> Batch:
        """See `Recorder`."""
        self.variant = batch.own(self.kind)
        return self.variant.batch

    def watch(self, text: Text, new: Sequence[int]) -> bool:
        """Keep the text, which grows."""
        self.text = text
        return False


def with_rounds(name: str, strategy: Any) -> RoundStrategy:
    """The ``strategy``, which must have rounds to record; else ValueError."""
    if isinstance(strategy, RoundStrategy):
        return strategy
    raise ValueError(
        f"strategy={quoted(name)} cannot be profiled: it has no rounds that keep what they measure"
    )


def refuse_several(request: Request) -> None:
    """A profile is of one text."""
    if request.is_batch:
        raise ValueError(
            "prompt must be one prompt, not a list: profile one after the other, and merge the "
            "profiles"
        )


def profiled(
    pair: Pair,
    strategy: RoundStrategy,
    request: Request,
    tokenizer: Any,
    metric: str,
) -> ProfileResult:
    """Write the text of ``request``, which has one row, and profile it.

    metric    "uncertainty" or "entropy": what a profile shows where it is asked for no other
    """
    recording = Recording(strategy)
    result = strategy.run(pair, request, tokenizer, recording).single()
    stats, threshold = dict(result.stats), result.stats.get("threshold")
    if threshold is not None:
        stats["strategy"] = f"profiled_{stats['strategy']}"
    return ProfileResult(
        tokens=tuple(token_profiles(recording, request, tokenizer, result.tokens)),
        generated_text=result.text,
        stats=stats,
        metric=metric,
        threshold=threshold,
        measured_by="slm" if recording.kind.by_slm else "llm",
    )


def token_profiles(
    recording: Recording, request: Request, tokenizer: Any, tokens: Sequence[int]
) -> Iterator[TokenProfile]:
    """Of each of the ``tokens`` that the text keeps."""
    text, variant = recording.text, recording.variant
    assert text is not None and variant is not None, "nothing has been recorded"
    rounds = rounds_of(text, len(tokens))
    where = slice(len(text.prompt), len(text.prompt) + len(tokens))
    measured = measures(variant, where, rounds, request.evidence)
    drafts = drafts_of(variant, where, rounds, text, request)
    names = Names(tokenizer)
    written = texts_of(tokenizer, text.prompt, tokens)
    for i, (token, shown) in enumerate(zip(tokens, written, strict=True)):
        own, draft = measured[i], drafts[i]
        rejected = draft.token if draft.accepted is False else None
        yield TokenProfile(
            token_id=token,
            token_text=shown,
            position=i,
            model_used=WRITERS[text.sources[i]],
            aleatoric_uncertainty=own.aleatoric,
            epistemic_uncertainty=own.epistemic,
            entropy=own.entropy,
            top_k_probs=own.probs,
            top_k_ids=own.ids,
            top_k_texts=tuple(map(names.of, own.ids)),
            accepted=draft.accepted,
            rejected_id=rejected,
            rejected_text=None if rejected is None else names.of(rejected),
            p=draft.p,
            q=draft.q,
        )


class RoundOf(NamedTuple):
    """The round that wrote a token: what its program called it, and the text's length before."""

    name: Any
    length: int


def rounds_of(text: Text, count: int) -> list[RoundOf]:
    """Of each of a text's first ``count`` tokens."""
    gained = [each for _, each in text.rounds]
    lengths = accumulate(gained, initial=len(text.prompt))
    each = [
        RoundOf(name, length)
        for (name, tokens), length in zip(text.rounds, lengths, strict=False)
        for _ in range(tokens)
    ]
    return each[:count]


class Measured(NamedTuple):
    """What was measured before a token."""

    aleatoric: float | None = None
    epistemic: float | None = None
    entropy: float | None = None
    probs: tuple[float, ...] = ()
    ids: tuple[int, ...] = ()


def measures(
    recorded: Recorded, where: slice, rounds: Sequence[RoundOf], evidence: str
) -> list[Measured]:
    """Those of the positions ``where`` of the first row, each written in one of ``rounds``."""
    recorded.measures.finish()
    seen = recorded.measures.measured
    top = seen.top[where]
    aleatoric, epistemic = map(on_host, logtoku(top, top.shape[1], EVIDENCE[evidence]))
    logits, candidates = on_host(top), on_host(seen.ids[where]).astype(np.int64)
    position = np.arange(where.start, where.stop)
    length = on_host(seen.then[where])
    known = length != NEVER
    if recorded.batch.rows.kept is not None:
        known &= (length >= position) | (length == [each.length for each in rounds])
    entropy = np.maximum(-on_host(seen.negentropy[where]), 0)
    likeliest = on_host(seen.logprob[where])
    probs = np.exp(logits - logits[:, :1] + likeliest[:, None])
    return [
        Measured(aleatoric[i], epistemic[i], entropy[i], tuple(probs[i]), tuple(candidates[i]))
        if known[i]
        else Measured()
        for i in range(len(known))
    ]


def on_host(tensor: Tensor) -> Doubles:
    """In float64, which holds every float32 and every id as it is."""
    values: Doubles = tensor.double().cpu().numpy()
    return values


class Draft(NamedTuple):
    """The draft that stood at a token's place; without one, None throughout."""

    token: int | None = None
    accepted: bool | None = None
    p: float | None = None
    q: float | None = None


def drafts_of(
    recorded: Recorded, where: slice, rounds: Sequence[RoundOf], text: Text, request: Request
) -> list[Draft]:
    """Those at the positions ``where`` of the first row."""
    kept = recorded.batch.rows.kept
    if kept is None:
        return [Draft()] * len(rounds)
    said = on_host(kept.values[0, where])
    heat, greedy = request.sampling.temperature, request.sampling.greedy
    token, p = np.nan_to_num(said[:, TOKEN]).astype(np.int64), probability(said[:, JUDGED:], heat)
    p[token >= recorded.batch.llm.vocab_size] = 0
    q = probability(said[:, DRAWN:JUDGED], heat)
    found = []
    for i, (choice, length) in enumerate(rounds):
        drafted = isinstance(choice, Choice) and where.start + i < length + choice.arm.drafts
        if not drafted:
            found.append(Draft())
            continue
        accepted = text.sources[i] != SOURCE_LLM
        own_p, own_q = (float(accepted), 1.0) if greedy else (float(p[i]), float(q[i]))
        by_model = choice.arm.drafter == MODEL
        found.append(Draft(int(token[i]), accepted, own_p, own_q if by_model else None))
    return found


def probability(of: Doubles, temperature: float) -> Doubles:
    """Of logits in their filtered distributions: [N], of [N, 4], a logit and a truncation each."""
    logit, truncation = of[:, 0], of[:, 1:]
    heat = bounded(np.array(temperature if temperature > 0 else 1.0))
    p = np.exp((logit - truncation[:, LARGEST]) / heat - truncation[:, LOG_Z])
    return np.where(logit < truncation[:, TAU], 0.0, p)


class Names:
    """The texts of single tokens, special ones too."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def of(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = decode(self.tokenizer, [token], skip_special_tokens=False)
        return self.known[token]


def texts_of(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text: together, what all of them add.

    A character of several tokens is its last one's, or the last one's that there is.
    """
    detokenizer, pieces, ends = Detokenizer(tokenizer, prompt), [], []
    length = 0
    for token in tokens:
        pieces.append(detokenizer.push(token))
        length += len(pieces[-1])
        ends.append(length + len(detokenizer.tail))
    whole = "".join(pieces) + detokenizer.flush()
    if ends:
        ends[-1] = len(whole)
    ends = list(accumulate((min(end, len(whole)) for end in ends), max))
    return [whole[first:end] for first, end in pairwise([0, *ends])]
