"""One call of `generate`, checked once, before any model runs."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridgen.checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    exact_list,
    has_attribute,
    quoted,
    shown,
)
from hybridgen.engine.state import MAX_DRAFTS, MAX_EOS
from hybridgen.prompts import Prompt, Room

MAX_CONSECUTIVE = 16
MAX_STOPS = 256  # each is looked for at every token
MAX_STOP_LENGTH = 4096  # characters
SEEDS = 2**63
VERIFICATIONS = ("rejection", "coupled")
EVIDENCE = ("probs", "logits")


@dataclass(frozen=True)
class Request:
    """What one `generate` call asks for; every value is in range. Rows are the call's prompts.

    A row's `seed` keys all its random numbers. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and
    `min_p` 0 are off. `stream` is None, a transformers streamer or a callable, for one row only.
    `prompt_texts` has each prompt that was given as a string, None for any other.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    prompt_texts: tuple[str | None, ...]
    strategy: str
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    num_drafts: int
    verification: str
    threshold: float | None
    llm_fraction: float | None
    llm_consecutive_tokens: int
    evidence: str
    seed: tuple[int, ...]
    stop: tuple[str, ...]
    eos_token_id: tuple[int, ...]
    ignore_eos: bool
    stream: Any

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return len(self.prompt_ids)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a row: the eos ids, or none when they are ignored."""
        return () if self.ignore_eos else self.eos_token_id


def make_request(
    prompt: Prompt,
    *,
    vocab_size: int,
    max_positions: int,
    default_eos: Sequence[int] = (),
    strategies: Collection[str] = (),
    strategy: object = "speculative",
    max_new_tokens: object = 200,
    temperature: object = 1.0,
    top_k: object = 0,
    top_p: object = 1.0,
    min_p: object = 0.0,
    num_drafts: object = 4,
    threshold: object = None,
    llm_fraction: object = None,
    llm_consecutive_tokens: object = 1,
    verification: object = "rejection",
    evidence: object = "probs",
    seed: object = None,
    stop: object = None,
    eos_token_id: object = None,
    ignore_eos: object = False,
    stream: object = None,
) -> Request:
    """Check the raw arguments of `generate` and return them as a `Request`.

    vocab_size      ids must be below it
    max_positions   prompt and new tokens of a row must fit in it
    default_eos     the checkpoint's eos ids, used where `eos_token_id` is None
    strategies      the known names; empty: the caller has looked `strategy` up already

    The prompt is tokenised last, when everything else is right.

    Raises TypeError or ValueError naming the argument, what it accepts and what came.
    """
    name = check_choice("strategy", strategy, strategies or (str(strategy),))
    room = Room(max_positions, check_new_tokens(max_new_tokens, max_positions))
    bar, fraction = _check_routing(threshold, llm_fraction)
    options: dict[str, Any] = {
        **check_sampling(temperature, top_k, top_p, min_p, vocab_size),
        "num_drafts": check_int("num_drafts", num_drafts, 1, MAX_DRAFTS),
        "verification": check_choice("verification", verification, VERIFICATIONS),
        "threshold": bar,
        "llm_fraction": fraction,
        "llm_consecutive_tokens": check_int(
            "llm_consecutive_tokens", llm_consecutive_tokens, 1, MAX_CONSECUTIVE
        ),
        "evidence": check_choice("evidence", evidence, EVIDENCE),
        "seed": check_seed(seed, prompt.rows),
        "stop": _check_stop(stop),
        "eos_token_id": _check_eos(eos_token_id, default_eos, vocab_size),
        "ignore_eos": check_bool("ignore_eos", ignore_eos),
        "stream": _check_stream(stream, prompt.rows),
    }
    return Request(
        prompt_ids=_check_ids(prompt.token_ids(room), vocab_size, room),
        prompt_texts=prompt.texts,
        strategy=name,
        max_new_tokens=room.new_tokens,
        **options,
    )


def check_new_tokens(max_new_tokens: object, max_positions: int) -> int:
    """At least 1, and so many that a prompt of one token fits beside them."""
    new = check_int("max_new_tokens", max_new_tokens, 1)
    if new >= max_positions:
        raise ValueError(
            f"max_new_tokens must leave room for the prompt: it is {quoted(new)}, and the "
            f"generator has {max_positions} positions for both (max_seq_len, at most the models' "
            f"context)"
        )
    return new


def check_sampling(
    temperature: object, top_k: object, top_p: object, min_p: object, vocab_size: int
) -> dict[str, Any]:
    """The four sampling parameters in range; a `top_k` of the vocabulary or more becomes 0, off."""
    k = check_int("top_k", top_k, 0)
    return {
        "temperature": check_float(
            "temperature", temperature, "a finite number >= 0 (0 is greedy)", lambda x: x >= 0
        ),
        "top_k": 0 if k >= vocab_size else k,
        "top_p": check_float(
            "top_p", top_p, "a number above 0 and at most 1 (1 is off)", lambda x: 0 < x <= 1
        ),
        "min_p": check_float("min_p", min_p, "a number from 0 (off) to 1", lambda x: 0 <= x <= 1),
    }


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


def _check_routing(threshold: object, llm_fraction: object) -> tuple[float | None, float | None]:
    if threshold is not None and llm_fraction is not None:
        raise ValueError(
            f"threshold={quoted(threshold)} and llm_fraction={quoted(llm_fraction)} exclude each "
            f"other: llm_fraction chooses the threshold itself"
        )
    if threshold is not None:
        accepted = "a finite number >= 0"
        return check_float("threshold", threshold, accepted, lambda x: x >= 0), None
    if llm_fraction is not None:
        accepted = "a number from 0 to 1"
        return None, check_float("llm_fraction", llm_fraction, accepted, lambda x: 0 <= x <= 1)
    return None, None


def check_seed(seed: object, rows: int) -> tuple[int, ...]:
    """One seed a row. Drawn seeds are short, so that one can be typed again from the statistics."""
    if seed is None:
        seed = secrets.randbelow(2**32)
    if isinstance(seed, np.ndarray) and seed.ndim:
        seed = list(seed)
    seeds = exact_list(seed)
    if seeds is not None:
        if len(seeds) != rows:
            raise ValueError(f"seed must have one integer a row ({rows}), got {len(seeds)}")
        return tuple(check_int(f"seed[{i}]", s, 0, SEEDS - 1) for i, s in enumerate(seeds))
    first = check_int("seed", seed, 0, SEEDS - rows)
    return tuple(range(first, first + rows))


def _check_stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    accepted = "a string or a list of strings"
    items = [stop] if isinstance(stop, str) else exact_list(stop)
    if items is None:
        raise TypeError(f"stop must be {accepted}, got {shown(stop)}")
    if len(items) > MAX_STOPS:
        raise ValueError(f"stop must be at most {MAX_STOPS} strings, got {len(items)}")
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"stop must be {accepted}, got a list with {shown(item)}")
    texts = tuple(dict.fromkeys(str.__str__(item) for item in items))
    for text in texts:
        if not text:
            raise ValueError("stop must not hold an empty string: it would stop at once")
        if len(text) > MAX_STOP_LENGTH:
            raise ValueError(
                f"stop must be strings of at most {MAX_STOP_LENGTH} characters, got one of "
                f"{len(text)}: {quoted(text)}"
            )
    return texts


def _check_eos(eos_token_id: object, default: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    if eos_token_id is None:
        items: list[Any] = list(dict.fromkeys(default))
    else:
        several = exact_list(eos_token_id)
        items = [eos_token_id] if several is None else several
    if len(items) > MAX_EOS:
        raise ValueError(f"eos_token_id must be at most {MAX_EOS} ids, got {len(items)}")
    if eos_token_id is None:
        return tuple(items)
    ids = (check_int("eos_token_id", item, 0, vocab_size - 1) for item in items)
    return tuple(dict.fromkeys(ids))


def _check_stream(stream: object, rows: int) -> object:
    if stream is None:
        return None
    has_both = has_attribute(stream, "put") and has_attribute(stream, "end")
    usable = is_streamer(stream) if has_both else callable(stream)
    if isinstance(stream, type) or not usable:
        raise TypeError(
            "stream must be a callable that takes a piece of text, or a transformers streamer "
            f"object with the methods put() and end(), got {shown(stream)}"
        )
    if rows > 1:
        raise ValueError(f"stream works with one prompt, got {rows}")
    return stream


def is_streamer(stream: object) -> bool:
    """Whether a stream is fed tokens, as transformers does it, and not text."""
    return callable(getattr(stream, "put", None)) and callable(getattr(stream, "end", None))
