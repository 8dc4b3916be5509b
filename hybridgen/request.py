"""One call of `generate`, checked once, before any model runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hybridgen.checks import check_no_more, quoted
from hybridgen.engine.adjustment import Adjustment
from hybridgen.engine.sampling import Sampling
from hybridgen.fields import Facts, Field
from hybridgen.parameters import FIELDS
from hybridgen.processors import PROCESSORS, adjustment
from hybridgen.prompts import Prompt, Room


@dataclass(frozen=True)
class Request:
    """What one `generate` call asks for; every value is in range. Rows are the call's prompts.

    Each parameter is an attribute: ``request.max_new_tokens``, ``request.top_p``, and the options
    of the call's own strategy.

    prompt_ids      the token ids of each row
    prompt_texts    each prompt that was given as a string, None for any other
    sampling        how tokens are drawn
    values          every other parameter by name. ``seed`` has one integer a row, which keys all
                    its random numbers; ``stop`` and ``eos_token_id`` are tuples; ``stream`` is
                    None, a transformers streamer, for one row only, or a callable
    is_batch        whether the prompt was a list of prompts, of one even
    adjustment      what is done to logits before tokens are drawn from them
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    prompt_texts: tuple[str | None, ...]
    sampling: Sampling
    values: Mapping[str, Any]
    is_batch: bool = False
    adjustment: Adjustment = field(default_factory=Adjustment)

    def __getattr__(self, name: str) -> Any:
        if name in Sampling._fields:
            return getattr(self.sampling, name)
        if name in vars(self).get("values", ()):
            return self.values[name]
        raise AttributeError(f"a request has no {name!r}")

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return len(self.prompt_ids)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a row: the eos ids, or none when they are ignored."""
        ids: tuple[int, ...] = self.values["eos_token_id"]
        return () if self.values["ignore_eos"] else ids


def make_request(
    prompt: Prompt,
    *,
    vocab_size: int,
    max_positions: int,
    default_eos: Sequence[int] = (),
    strategies: Collection[str] = (),
    fields: Sequence[Field] = FIELDS,
    **given: Any,
) -> Request:
    """`check_request` of the arguments ``given``; sampling that is not given is off.

    vocab_size       ids must be below it
    max_positions    prompt and new tokens of a row must fit in it
    default_eos      used where ``eos_token_id`` is None
    strategies       the known names; empty: the caller has looked the strategy up already
    """
    defaults = {"eos_token_id": default_eos}
    facts = Facts(
        prompt.rows, vocab_size, max_positions, strategies, defaults, is_batch=prompt.is_batch
    )
    return check_request(prompt, Sampling()._asdict() | given, facts, fields)


def check_request(
    prompt: Prompt, given: Mapping[str, Any], facts: Facts, fields: Sequence[Field] = FIELDS
) -> Request:
    """Check the raw arguments of `generate`, by name, and return them as a `Request`.

    The prompt is tokenised last, when everything else is right.

    Raises TypeError or ValueError naming the argument, what it accepts and what came.
    """
    known = [field.name for field in fields]
    check_no_more("generate", [name for name in given if name not in known], ["prompt", *known])
    values = {field.name: field.value(given, facts) for field in fields}
    room = Room(facts.max_positions, values["max_new_tokens"])
    return Request(
        prompt_ids=_check_ids(prompt.token_ids(room), facts.vocab_size, room),
        prompt_texts=prompt.texts,
        sampling=Sampling(*(values.pop(name) for name in Sampling._fields)),
        values=MappingProxyType(values),
        is_batch=prompt.is_batch,
        adjustment=adjustment(values),
    )


def refuse_for_custom(request: Request) -> None:
    """A custom strategy calls the models itself."""
    asked = next((f.name for f in PROCESSORS if request.values[f.name] != f.value({}, Facts())), "")
    if request.reuse:
        raise ValueError(
            f"reuse must be False with strategy={quoted(request.strategy)}: a custom strategy "
            "reads its prompts itself"
        )
    if asked:
        raise ValueError(
            f"{asked} must not be given with strategy={quoted(request.strategy)}: a custom "
            "strategy draws from the models' logits itself"
        )


def _check_ids(
    prompt_ids: Sequence[Sequence[int]], vocab_size: int, room: Room
) -> tuple[tuple[int, ...], ...]:
    for row, ids in enumerate(prompt_ids):
        where = "prompt" if len(prompt_ids) == 1 else f"prompt[{row}]"
        if not ids:
            raise ValueError(f"{where} is empty: it must have at least one token")
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(i for i in ids if not 0 <= i < vocab_size)
            raise ValueError(
                f"{where} holds token id {quoted(wrong)}; ids must be from 0 to {vocab_size - 1}"
            )
        room.check(where, len(ids))
    return tuple(tuple(ids) for ids in prompt_ids)
