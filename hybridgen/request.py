"""One call of `generate`, checked once, before any model runs.

`tokenize_prompt` turns whatever the user passed into token ids, `sampling_defaults` reads what the
checkpoint recommends, and `make_request` checks everything and returns an immutable `Request`.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridgen.checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    shown,
)
from hybridgen.engine.state import MAX_EOS

MAX_DRAFTS = 15
MAX_CONSECUTIVE = 16
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


def sampling_defaults(
    generation_config: Any,
    *,
    temperature: Any = None,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
) -> dict[str, Any]:
    """The four sampling parameters, those left at None taken from the LLM's generation config.

    What the checkpoint sets is used (`do_sample=False` is temperature 0); what it does not set is
    temperature 1.0, top_k 0 (off), top_p 1.0 (off), min_p 0.0 (off). `generation_config` may be
    None. Note that transformers itself would fill an unset top_k with 50.
    """
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    fallback = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    config = {name: getattr(generation_config, name, None) for name in given}
    if getattr(generation_config, "do_sample", None) is False:
        config["temperature"] = 0.0
    choices = ((given[name], config[name], fallback[name]) for name in given)
    return {
        name: next(value for value in values if value is not None)
        for name, values in zip(given, choices, strict=True)
    }


def make_request(
    *,
    prompt_ids: Sequence[Sequence[int]],
    prompt_texts: Sequence[str | None] | None = None,
    vocab_size: int,
    max_positions: int,
    max_batch_size: int,
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

    prompt_ids      one list of token ids a row, from `tokenize_prompt`
    prompt_texts    the prompts that were strings, None for any other
    vocab_size      ids must be below it
    max_positions   prompt and new tokens of a row must fit in it
    default_eos     the checkpoint's eos ids, used where `eos_token_id` is None
    strategies      the known names; empty: the caller has looked `strategy` up already

    Raises TypeError or ValueError naming the argument, what it accepts and what came.
    """
    name = check_choice("strategy", strategy, strategies or (str(strategy),))
    new = check_int("max_new_tokens", max_new_tokens, 1)
    rows = _check_prompts(prompt_ids, vocab_size, max_positions, max_batch_size, new)
    bar, fraction = _check_routing(threshold, llm_fraction)
    if eos_token_id is None:
        eos: tuple[int, ...] = tuple(default_eos)
    else:
        eos = _check_eos(eos_token_id, vocab_size)
    if len(eos) > MAX_EOS:
        raise ValueError(f"eos_token_id must be at most {MAX_EOS} ids, got {len(eos)}")
    return Request(
        prompt_ids=rows,
        prompt_texts=tuple(prompt_texts or [None] * len(rows)),
        strategy=name,
        max_new_tokens=new,
        **check_sampling(temperature, top_k, top_p, min_p, vocab_size),
        num_drafts=check_int("num_drafts", num_drafts, 1, MAX_DRAFTS),
        verification=check_choice("verification", verification, VERIFICATIONS),
        threshold=bar,
        llm_fraction=fraction,
        llm_consecutive_tokens=check_int(
            "llm_consecutive_tokens", llm_consecutive_tokens, 1, MAX_CONSECUTIVE
        ),
        evidence=check_choice("evidence", evidence, EVIDENCE),
        seed=check_seed(seed, len(rows)),
        stop=_check_stop(stop),
        eos_token_id=eos,
        ignore_eos=check_bool("ignore_eos", ignore_eos),
        stream=_check_stream(stream, len(rows)),
    )


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


def _check_prompts(
    prompt_ids: Sequence[Sequence[int]],
    vocab_size: int,
    max_positions: int,
    max_batch_size: int,
    max_new_tokens: int,
) -> tuple[tuple[int, ...], ...]:
    if not prompt_ids:
        raise ValueError("prompt must hold at least one prompt, got an empty list")
    if len(prompt_ids) > max_batch_size:
        raise ValueError(
            f"prompt has {len(prompt_ids)} rows, but the generator was made for "
            f"max_batch_size={max_batch_size}; pass fewer prompts or a larger max_batch_size"
        )
    for row, ids in enumerate(prompt_ids):
        where = "prompt" if len(prompt_ids) == 1 else f"prompt {row}"
        if not ids:
            raise ValueError(f"{where} is empty: it must have at least one token")
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(i for i in ids if not 0 <= i < vocab_size)
            raise ValueError(
                f"{where} holds token id {wrong}; ids must be from 0 to {vocab_size - 1}"
            )
        needed = len(ids) + max_new_tokens
        if needed > max_positions:
            raise ValueError(
                f"{where} has {len(ids)} tokens, with max_new_tokens={max_new_tokens} that is "
                f"{needed} positions, but the generator has {max_positions} (max_seq_len, at most "
                f"the models' context); shorten the prompt or lower max_new_tokens"
            )
    return tuple(tuple(ids) for ids in prompt_ids)


def _check_routing(threshold: object, llm_fraction: object) -> tuple[float | None, float | None]:
    if threshold is not None and llm_fraction is not None:
        raise ValueError(
            f"threshold={threshold!r} and llm_fraction={llm_fraction!r} exclude each other: "
            f"llm_fraction chooses the threshold itself"
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
    if isinstance(seed, (list, tuple, np.ndarray)):
        if len(seed) != rows:
            raise ValueError(f"seed must have one integer a row ({rows}), got {len(seed)}")
        return tuple(check_int(f"seed[{i}]", s, 0, SEEDS - 1) for i, s in enumerate(seed))
    first = check_int("seed", seed, 0, SEEDS - rows)
    return tuple(range(first, first + rows))


def _check_stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    accepted = "a string or a list of strings"
    items = [stop] if isinstance(stop, str) else stop
    if not isinstance(items, (list, tuple)):
        raise TypeError(f"stop must be {accepted}, got {shown(stop)}")
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"stop must be {accepted}, got a list with {shown(item)}")
        if not item:
            raise ValueError("stop must not hold an empty string: it would stop at once")
    return tuple(dict.fromkeys(items))


def _check_eos(eos_token_id: object, vocab_size: int) -> tuple[int, ...]:
    if isinstance(eos_token_id, (list, tuple)):
        ids = [check_int("eos_token_id", i, 0, vocab_size - 1) for i in eos_token_id]
    else:
        ids = [check_int("eos_token_id", eos_token_id, 0, vocab_size - 1)]
    return tuple(dict.fromkeys(ids))


def _check_stream(stream: object, rows: int) -> object:
    if stream is None:
        return None
    is_streamer = callable(getattr(stream, "put", None)) and callable(getattr(stream, "end", None))
    if isinstance(stream, type) or not (is_streamer or callable(stream)):
        raise TypeError(
            "stream must be a callable that takes a piece of text, or a transformers streamer "
            f"object with put() and end(), got {shown(stream)}"
        )
    if rows > 1:
        raise ValueError(f"stream works with one prompt, got {rows}")
    return stream


def tokenize_prompt(tokenizer: Any, prompt: object) -> tuple[list[list[int]], bool]:
    """Token ids of `prompt`, one list a row, and whether it was a batch.

    Accepted: a string; token ids (a list of ints, or an integer tensor or array [T]); chat messages
    (a list of {"role": ..., "content": ...}, through the tokenizer's chat template with the
    generation prompt added); and a list of any of these, or an integer tensor [B, T], as a batch.
    Rows of a tensor are taken whole: padding is not removed.

    Strings get the special tokens that the tokenizer adds by itself, but a string that already
    begins with the bos token (a rendered chat template) does not get a second one.
    """
    prompt = _plain(prompt)
    if _is_one(prompt):
        return [_tokenize_one(tokenizer, prompt, "prompt")], False
    if isinstance(prompt, list):
        rows = [_plain(item) for item in prompt]
        return [_tokenize_one(tokenizer, row, f"prompt[{i}]") for i, row in enumerate(rows)], True
    raise TypeError(_ACCEPTED_PROMPTS.format(name="prompt", got=shown(prompt)))


_ACCEPTED_PROMPTS = (
    "{name} must be a string, token ids (ints), chat messages (dicts with role and content), or a "
    "list of these, got {got}"
)


def _plain(prompt: object) -> object:
    """Tensors, arrays and tuples as lists; anything else as it is."""
    kind = getattr(prompt, "dtype", None)
    if kind is not None and hasattr(prompt, "tolist"):
        if any(word in str(kind) for word in ("float", "bool", "complex")):
            raise TypeError(f"prompt must have an integer dtype, got a {kind} tensor")
        return prompt.tolist()
    return list(prompt) if isinstance(prompt, tuple) else prompt


def _is_one(prompt: object) -> bool:
    """Whether `prompt` is a single prompt; an empty list is a prompt without tokens."""
    if isinstance(prompt, str):
        return True
    return isinstance(prompt, list) and not (prompt and isinstance(_plain(prompt[0]), (str, list)))


def _tokenize_one(tokenizer: Any, prompt: object, name: str) -> list[int]:
    if isinstance(prompt, str):
        return _tokenize_text(tokenizer, prompt, name)
    if not isinstance(prompt, list):
        raise TypeError(_ACCEPTED_PROMPTS.format(name=name, got=shown(prompt)))
    if prompt and isinstance(prompt[0], Mapping):
        return _tokenize_chat(tokenizer, prompt, name)
    for item in prompt:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            raise TypeError(_ACCEPTED_PROMPTS.format(name=name, got=f"a list with {shown(item)}"))
    return [int(item) for item in prompt]


def _tokenize_text(tokenizer: Any, text: str, name: str) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode text: {error.reason}") from error
    bos = getattr(tokenizer, "bos_token", None)
    add_special_tokens = not (bos and text.startswith(bos))
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
    return list(encoded["input_ids"])


def _tokenize_chat(tokenizer: Any, messages: list[Any], name: str) -> list[int]:
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"{name}[{i}] must be a chat message (a dict), got {shown(message)}")
        for key in ("role", "content"):
            if key not in message:
                raise ValueError(f"{name}[{i}] has no {key!r}: a chat message has role and content")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"{name} is a chat, but the LLM's tokenizer has no chat template")
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # templates are programs of the checkpoint: they raise anything
        raise ValueError(f"{name}: the chat template refused the messages: {error}") from error
    return list(ids)
