"""The training text: Python's own standard library, its tokenizer, and batches of windows.

Everything is found in the running interpreter, so training needs no download. A file belongs to
the held-out set by the hash of its relative path: the same split on every machine and on every
Python version that has the file.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
VOCAB_SIZE = 4096
MAX_CONTEXT = 1024

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "idle_test", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
    | {"turtledemo"}
)
# Code-page tables are a million bytes of numbers: they would teach nothing but themselves.
SKIPPED_TABLES = ("_mapping", "decoding_table", "decoding_map")

# A word takes one leading mark or space with it (" self", "_name", "(x"); a run of spaces stays
# whole, so that an indentation of 4, 8 or 12 is one token, and a newline never joins either.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[\r\n]+|[^\S\r\n]+"


@dataclass(frozen=True)
class Corpus:
    """Texts of the files, by relative path, split into training and held-out."""

    train: dict[str, str]
    held_out: dict[str, str]


def is_held_out(relative_path: str) -> bool:
    """True for about 3% of all paths."""
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < 30


def load_corpus(root: Path | None = None, max_files: int | None = None) -> Corpus:
    """Read the library under ``root`` (the running interpreter's by default), in path order.

    ``max_files`` keeps the first ones of each split.
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
    return Corpus(dict(islice(train.items(), max_files)), dict(islice(held_out.items(), max_files)))


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
    tokenizer.train_from_iterator(corpus.train.values(), trainer)
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
    encoded = tokenizer(list(texts.values()), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array([*ids, eos], dtype=np.uint16) for ids in encoded]


def windows(documents: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """One epoch: documents in a new order, packed, cut at a random phase: int64 [n, length + 1].

    Each window carries one token more than its length, so that every position has a label.
    """
    order = rng.permutation(len(documents))
    stream = np.concatenate([documents[i] for i in order])
    stream = np.roll(stream, int(rng.integers(len(stream))))
    count = max(1, (len(stream) - 1) // length)
    stream = np.resize(stream, max(len(stream), length + 1))
    starts = rng.permutation(count) * length
    cut: np.ndarray = stream[starts[:, None] + np.arange(length + 1)]
    return cut.astype(np.int64)


def batches(
    documents: list[np.ndarray], batch: int, length: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless batches int64 [batch, length + 1], epoch after epoch."""
    pending = np.empty((0, length + 1), dtype=np.int64)
    while True:
        while len(pending) < batch:
            pending = np.concatenate([pending, windows(documents, length, rng)])
        yield pending[:batch]
        pending = pending[batch:]
