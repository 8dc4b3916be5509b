"""The training text: Python's own standard library and packages, a tokenizer, batches of windows.

The library is found in the running interpreter, so that training needs no download; ``packages.py``
brings more. A file of the library belongs to the held-out set by the hash of its relative path, a
package by the hash of its name: the same split on every machine and in every version.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
VOCAB_SIZE = 4096
MAX_CONTEXT = 1024
TEXTS_AT_ONCE = 256

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "idle_test", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
    | {"turtledemo"}
)
# Code-page tables are a million bytes of numbers: they would teach nothing but themselves.
SKIPPED_TABLES = ("_mapping", "decoding_table", "decoding_map")

# A word takes one leading mark or space with it (" self", "_name", "(x"); a run of spaces stays
# whole, so that an indentation of 4, 8 or 12 is one token, and a newline never joins either.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[\r\n]+|[^\S\r\n]+"


# The tokenizer needs no more than this share of the packages to know their words.
TOKENIZER_EVERY = 4
# How many rows of a training batch are small functions, each whole: they teach where a text ends.
FUNCTION_SHARE = 0.12


@dataclass(frozen=True)
class Corpus:
    """Texts by path, split into training and held-out: the library's files, and the packages'."""

    train: dict[str, str]
    held_out: dict[str, str]
    packages: dict[str, str] = field(default_factory=dict)
    held_out_packages: dict[str, str] = field(default_factory=dict)


def is_held_out(relative_path: str) -> bool:
    """True for about 3% of all paths."""
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < 30


def load_corpus(
    root: Path | None = None, max_files: int | None = None, packages: Path | None = None
) -> Corpus:
    """Read the library under ``root`` (the running interpreter's by default), in path order.

    ``max_files`` keeps the first ones of each split; ``packages`` is a folder that
    ``python -m hybridgen.pair.packages`` filled.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    train: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        text = path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
        if not text.strip() or (
            relative.parts[0] == "encodings" and any(name in text for name in SKIPPED_TABLES)
        ):
            continue
        target = held_out if is_held_out(relative.as_posix()) else train
        target[relative.as_posix()] = text
    return Corpus(
        dict(islice(train.items(), max_files)),
        dict(islice(held_out.items(), max_files)),
        *(read_packages(packages) if packages else ()),
    )


def read_packages(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The training and the held-out texts of a folder's packages, by path."""
    split: tuple[dict[str, str], dict[str, str]] = ({}, {})
    with (folder / "texts.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            split[row["held_out"]][row["path"]] = row["text"]
    return split


def train_tokenizer(corpus: Corpus, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training texts: any unicode string survives the round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    some = islice(corpus.packages.values(), 0, None, TOKENIZER_EVERY)
    tokenizer.train_from_iterator(chain(corpus.train.values(), some), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]) -> list[np.ndarray]:
    """Token ids of each text with a closing eos, as uint16 arrays."""
    eos = tokenizer.eos_token_id
    encoded: list[np.ndarray] = []
    values = iter(texts.values())
    # The tokenizer keeps a hundred bytes a token while it works: never the whole corpus.
    while some := list(islice(values, TEXTS_AT_ONCE)):
        batch = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        encoded.extend(np.array([*ids, eos], dtype=np.uint16) for ids in batch)
    return encoded


def windows(documents: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """One epoch: documents in a new order, packed, cut at a random phase: int64 [n, length + 1].

    Each window carries one token more than its length, so that every position has a label.
    """
    stream, starts = _shuffled(documents, length, rng)
    cut: np.ndarray = stream[starts[:, None] + np.arange(length + 1)]
    return cut.astype(np.int64)


def rows(
    documents: list[np.ndarray], length: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless windows uint16 [length + 1], epoch after epoch."""
    while True:
        stream, starts = _shuffled(documents, length, rng)
        for start in starts:
            yield stream[start : start + length + 1]


def function_rows(
    functions: list[np.ndarray], length: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless windows uint16 [length + 1] of small functions, the first one from its beginning."""
    while True:
        parts = [functions[rng.integers(len(functions))]]
        while sum(map(len, parts)) <= length:
            parts.append(functions[rng.integers(len(functions))])
        yield np.concatenate(parts)[: length + 1]


def mixed(
    some: Iterator[np.ndarray],
    others: Iterator[np.ndarray],
    share: float,
    batch: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Endless batches int64 [batch, length + 1] with a share of ``some`` among the others."""
    while True:
        chosen = rng.random(batch) < share
        yield np.stack([next(some if mine else others) for mine in chosen]).astype(np.int64)


def batches(
    documents: list[np.ndarray],
    functions: list[np.ndarray],
    batch: int,
    length: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """The large model's batches: windows of the documents, and a share of small functions."""
    return mixed(
        function_rows(functions, length, rng),
        rows(documents, length, rng),
        FUNCTION_SHARE,
        batch,
        rng,
    )


def _shuffled(
    documents: list[np.ndarray], length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All tokens in one stream uint16, and the starts of its windows in a random order."""
    order = rng.permutation(len(documents))
    stream = np.concatenate([documents[i] for i in order])
    stream = np.roll(stream, int(rng.integers(len(stream))))
    count = max(1, (len(stream) - 1) // length)
    stream = np.resize(stream, max(len(stream), length + 1))
    return stream, rng.permutation(count) * length
