"""The prompts that are written after: sets of the package, random ids, or a user's file."""

import random
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen import prompts as given
from hybridgen.benchmarks.prompt_files import Record, read

FOLDER = Path(__file__).parent / "prompts"
SETS = {
    "spec-bench": FOLDER / "spec_bench.jsonl",
    "code": FOLDER / "code.jsonl",
}
RANDOM = "random"
RANDOM_COUNT, RANDOM_LENGTH = 8, 128
NAMES = {
    "spec-bench": "48 prompts in the six categories of Spec-Bench, written for this project",
    "code": "16 beginnings of Python code",
    RANDOM: "ids drawn by the seed",
    "FILE": "of Spec-Bench, MT-Bench, HumanEval or GSM8K, as published (.jsonl, .jsonl.gz)",
}


class Prompt(NamedTuple):
    """Token ids with what they are about, such as "rag" or "code"."""

    category: str
    ids: list[int]


def load(
    name: str, tokenizer: Any, count: int | None = None, *, length: int | None = None, seed: int = 0
) -> list[Prompt]:
    """Prompts, always in the same order, in which categories take turns.

    name    "spec-bench", "code", "random", or the path of a file
    count   how many, from the beginning of that order; None: all, or 8 random ones
    length  tokens of a random prompt, 128 where it is None; no other set has a choice
    seed    of random prompts: each depends on it and on its place alone

    What is said to a model goes through the tokenizer's chat template, if it has one; the
    beginning of a code does not. ValueError for an unknown name, a file that is none (see
    `prompt_files.read`), and more prompts than there are.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if name == RANDOM:
        length = RANDOM_LENGTH if length is None else length
        return _drawn(tokenizer, RANDOM_COUNT if count is None else count, length, seed)
    if length is not None:
        raise ValueError(f"only random prompts have a length to choose, not {name!r}")
    path = SETS.get(name, Path(name))
    if not path.is_file():
        known = ", ".join([*SETS, RANDOM])
        raise ValueError(f"{name!r} is no file and no set of prompts: these are {known}")
    records = _in_turns(read(path))
    if count is not None and count > len(records):
        raise ValueError(f"{name!r} has {len(records)} prompts, not {count}")
    return [Prompt(record.category, _ids(record, tokenizer)) for record in records[:count]]


def _in_turns(records: list[Record]) -> list[Record]:
    """The first of each category, then the second of each, ..."""
    categories: dict[str, list[Record]] = {}
    for record in records:
        categories.setdefault(record.category, []).append(record)
    rounds = zip_longest(*categories.values())
    return [record for each in rounds for record in each if record is not None]


def _ids(record: Record, tokenizer: Any) -> list[int]:
    """As `HybridGenerator.generate` makes them."""
    prompt: object = record.text
    if record.is_chat and getattr(tokenizer, "chat_template", None):
        prompt = [{"role": "user", "content": record.text}]
    (ids,) = given.Prompt(tokenizer, prompt).token_ids()
    return ids


def _drawn(tokenizer: Any, count: int, length: int, seed: int) -> list[Prompt]:
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}")
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return [
        Prompt(RANDOM, random.Random(f"{seed} {place}").choices(ids, k=length))
        for place in range(count)
    ]
