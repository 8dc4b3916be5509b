"""The corpus as tokens, kept on disk: a restart must not read and encode everything again."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from hybridgen.pair import data
from hybridgen.pair.clean import functions

FILE = "documents.npz"

# By part: "library", "packages", "functions" to train on, "held_out", "held_out_packages".
Documents = dict[str, list[np.ndarray]]

# Passes over the standard library for each over the packages: every user's Python comes with it,
# and it is the smaller part by far.
LIBRARY_WEIGHT = 30


def encode(tokenizer: PreTrainedTokenizerFast, corpus: data.Corpus) -> Documents:
    """The token ids uint16 of each document of each part."""
    train = chain(corpus.train.values(), corpus.packages.values())
    small = list(dict.fromkeys(chain.from_iterable(map(functions, train))))
    return {
        "library": data.encode_documents(tokenizer, corpus.train),
        "packages": data.encode_documents(tokenizer, corpus.packages),
        "functions": data.encode_documents(tokenizer, dict(zip(small, small, strict=True))),
        "held_out": data.encode_documents(tokenizer, corpus.held_out),
        "held_out_packages": data.encode_documents(tokenizer, corpus.held_out_packages),
    }


def training_files(documents: Documents) -> list[np.ndarray]:
    """What an epoch reads, the library as often as it counts."""
    return documents["library"] * LIBRARY_WEIGHT + documents["packages"]


def save(documents: Documents, path: Path) -> None:
    """Write one file, or none if interrupted."""
    arrays: dict[str, Any] = {}
    for name, part in documents.items():
        arrays[name] = np.concatenate([np.empty(0, np.uint16), *part])
        arrays[f"{name}_lengths"] = np.array([len(document) for document in part], np.int64)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def load(path: Path) -> Documents:
    """What ``save`` wrote."""
    with np.load(path) as arrays:
        return {
            name: np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])
            if len(arrays[f"{name}_lengths"])
            else []
            for name in arrays.files
            if not name.endswith("_lengths")
        }
