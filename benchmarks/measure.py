"""Contenders side by side: the same work, in turns, each text checked before a time counts.

In a repeat every contender writes after every prompt once; the contenders take turns, so a slow
moment of the machine hits all alike, and ratios are taken within a repeat. The first repeat warms
up: it loads, compiles, captures, and is where texts are judged first. A contender that fails, or
whose text turns out wrong, has no times, in no repeat; the others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

from hybridgen.benchmarks.contender import Contender, Work, Written
from hybridgen.benchmarks.judge import Judge

Key = tuple[int, tuple[tuple[int, ...], ...]]  # the work's number, and what was written


@dataclass
class Measured:
    """One contender's repeats.

    text     "right", "sampled", or what is wrong
    seconds  of each repeat
    first    seconds of a call that writes one token after the first prompts, one a repeat
    tokens   new ones of a repeat
    stats    ours, of each call
    quality  mean log-likelihood by the LLM, of each repeat
    """

    text: str = ""
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    stats: list[dict[str, Any]] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)
    judged: dict[Key, str] = field(default_factory=dict, repr=False)

    @property
    def is_wrong(self) -> bool:
        return self.text.startswith("wrong")


def measure(
    contenders: Sequence[Contender],
    works: Sequence[Work],
    repeats: int,
    judge: Judge,
    until: float = float("inf"),
) -> dict[str, Measured]:
    """By the contender's name. ``works`` are what a repeat writes; their seeds move on with it.

    until   monotonic seconds after which no further repeat begins, but the first that counts
    """
    found = {contender.name: Measured() for contender in contenders}
    for repeat in range(-1, repeats):
        if repeat > 0 and monotonic() > until:
            break
        seeded = [work._replace(seed=work.seed + 1000 * (repeat + 1)) for work in works]
        texts: dict[str, list[Written]] = {}
        for contender in contenders:
            one = found[contender.name]
            if one.is_wrong:
                continue
            try:
                first, seconds, written = _repeat(contender, seeded)
            except Exception as error:
                one.text = f"wrong: {type(error).__name__}: {error}"
                continue
            texts[contender.name] = written
            one.text = _checked(contender, seeded, texts, judge, one)
            if repeat >= 0 and not one.is_wrong:
                one.first.append(first)
                one.seconds.append(seconds)
                one.tokens = sum(len(new) for each in written for new in each.tokens)
                one.stats += [each.stats for each in written if each.stats is not None]
                if not (one.quality and works[0].is_greedy):  # that text is always the same
                    one.quality.append(_quality(works, written, judge))
    for one in found.values():
        if one.is_wrong:
            one.seconds, one.first, one.tokens, one.stats, one.quality = [], [], 0, [], []
    return found


def _repeat(contender: Contender, works: Sequence[Work]) -> tuple[float, float, list[Written]]:
    """Seconds of one token after the first prompts, then of all the works, and what they wrote."""
    began = perf_counter()
    contender.write(works[0]._replace(new_tokens=1))
    first = perf_counter() - began
    began = perf_counter()
    written = [contender.write(work) for work in works]
    return first, perf_counter() - began, written


def _checked(
    contender: Contender,
    works: Sequence[Work],
    texts: dict[str, list[Written]],
    judge: Judge,
    one: Measured,
) -> str:
    """The verdict on a repeat's texts, of which each is read once."""
    for index, (work, written) in enumerate(zip(works, texts[contender.name], strict=True)):
        key = index, tuple(tuple(new) for new in written.tokens)
        if key not in one.judged:
            one.judged[key] = judge.verdict(work, written.tokens, contender.writers)
        verdict = one.judged[key]
        if verdict.startswith("wrong"):
            return verdict
        twin = contender.promises(work)
        if twin in texts and texts[twin][index].tokens != written.tokens:
            return f"wrong: not the tokens of {twin}, which it promises"
    return verdict


def _quality(works: Sequence[Work], written: Sequence[Written], judge: Judge) -> float:
    """Of a repeat's texts."""
    prompts = [prompt for work in works for prompt in work.prompts]
    return judge.quality(prompts, [new for each in written for new in each.tokens])
