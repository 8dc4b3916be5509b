"""Values that an argument must refuse, by argument: one table for all who take such arguments."""

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hybridgen import GenerationStrategy

NOT_INT = [True, 2.0, 2.5, "2", [2], {}, torch.tensor(2), math.nan]
NOT_NUMBER = [True, "0.5", [0.5], {}, torch.tensor(0.5), 1j, np.bool_(True)]

# Arguments of a request: (name, value).
WRONG_TYPE: list[tuple[str, object]] = [
    *(("max_new_tokens", value) for value in [*NOT_INT, None]),
    *(("temperature", value) for value in NOT_NUMBER),
    *(("top_k", value) for value in NOT_INT),
    *(("top_p", value) for value in NOT_NUMBER),
    *(("min_p", value) for value in NOT_NUMBER),
    *(("num_drafts", value) for value in [*NOT_INT, None]),
    *(("threshold", value) for value in NOT_NUMBER),
    *(("llm_fraction", value) for value in NOT_NUMBER),
    *(("llm_consecutive_tokens", value) for value in [*NOT_INT, None]),
    *(("verification", value) for value in [1, ["rejection"]]),
    *(("evidence", value) for value in [None, 0, 1, ["probs"]]),
    *(("repetition_penalty", value) for value in NOT_NUMBER),
    *(("no_repeat_ngram_size", value) for value in NOT_INT),
    *(("min_new_tokens", value) for value in NOT_INT),
    *(("suppress_tokens", value) for value in [5, "5", [1.5], [True], {1}, [None]]),
    *(("bad_words_ids", value) for value in [5, "5", [5], ["ab"], {1: 2}]),
    *(("logits_processor", value) for value in [5, "min", [5], [print, None], list]),
    *(("strategy", value) for value in [None, 1, 3, ["llm"], GenerationStrategy]),
    *(("seed", value) for value in [True, 1.0, 1.5, "1", [1.0], [1.5], torch.tensor(1)]),
    *(("stop", value) for value in [1, 5, b"end", [1], ["end", 5], {"end"}, {"end": 1}]),
    *(("eos_token_id", value) for value in [True, 1.5, "eos", [None], [1, 2.0]]),
    *(("ignore_eos", value) for value in [None, 1, "yes"]),
    *(("reuse", value) for value in [None, 1, "yes"]),
    *(("stream", value) for value in [1, "stdout", [], list, print.__class__]),
    ("stream", SimpleNamespace(put=print)),
]

# Arguments of a request: (name, value, what the error says is accepted).
OUT_OF_RANGE: list[tuple[str, object, str]] = [
    *(("max_new_tokens", value, ">= 1") for value in [0, -1, -5]),
    *(("temperature", value, ">= 0") for value in [-0.1, -0.5]),
    *(("temperature", value, "finite") for value in [math.inf, math.nan]),
    ("top_k", -1, ">= 0"),
    *(("top_p", value, "above 0 and at most 1") for value in [0.0, 1.0001, 1.5, math.nan]),
    *(("min_p", value, "from 0 (off) to 1") for value in [-0.1, 1.1]),
    *(("num_drafts", value, "from 1 to 15") for value in [0, 16]),
    *(("threshold", value, ">= 0") for value in [-0.1, -1.0]),
    *(("threshold", value, "finite") for value in [math.inf, math.nan]),
    *(("llm_fraction", value, "from 0 to 1") for value in [-0.1, 1.1]),
    *(("llm_consecutive_tokens", value, "from 1 to 16") for value in [0, 17]),
    *(("repetition_penalty", value, "above 0") for value in [0, -1.5, math.nan]),
    ("repetition_penalty", math.inf, "finite"),
    ("no_repeat_ngram_size", -1, ">= 0"),
    ("min_new_tokens", -1, ">= 0"),
    *(("suppress_tokens", value, "from 0 to") for value in [[-1], [1, 10**6]]),
    *(("bad_words_ids", value, "from 0 to") for value in [[[-1]], [[1, 10**6]]]),
    ("bad_words_ids", [[1], []], "at least one token"),
    ("logits_processor", [print] * 65, "at most 64"),
    ("verification", "exact", "'rejection', 'coupled'"),
    *(("evidence", value, "'probs', 'logits'") for value in ["prob", "entropy"]),
    *(("strategy", value, "'speculative', 'uncertainty'") for value in ["speculation", ""]),
    *(("seed", value, "from 0") for value in [-1, 2**63, [2**63]]),
    *(("seed", value, "one integer a row") for value in [[1, 2], []]),
    *(("stop", value, "empty string") for value in ["", ["a", ""], ["end", ""]]),
    *(("eos_token_id", value, "from 0 to") for value in [-1, 10**6, [1, 10**6]]),
    ("eos_token_id", list(range(17)), "at most 16"),
]

# Arguments of the constructor: (name, value, error).
CONSTRUCTOR: list[tuple[str, object, type[Exception]]] = [
    *(("max_batch_size", value, TypeError) for value in [*NOT_INT, 1.5, None]),
    *(("max_batch_size", value, ValueError) for value in [0, -1, 2**31, 10**400]),
    *(("max_seq_len", value, TypeError) for value in [*NOT_INT, 1.5]),
    *(("max_seq_len", value, ValueError) for value in [0, 1, -1, 2**31, 10**400]),
    *(("trust_remote_code", value, TypeError) for value in [1, "yes"]),
    *(("slm_weights", value, TypeError) for value in [8, True, ["int8"], torch.int8]),
    *(("llm_weights", value, ValueError) for value in ["int4", "", "INT8", "x" * 10**6]),
    *(("dtype", value, ValueError) for value in ["int4", "Tensor", "", "x" * 10**6]),
    *(("dtype", value, ValueError) for value in [torch.int8, torch.float64, 32, [], float]),
    *(("dtype", value, ValueError) for value in [np.zeros(2), torch.zeros(2)]),
    *(("device", value, ValueError) for value in ["gpu", "meta", "cpu:1", "cuda:99", "mps", ""]),
    *(("device", value, ValueError) for value in ["x" * 10**6, 1.5, True, [], 10**30, -1, torch]),
    *(("tokenizer", value, TypeError) for value in ["gpt2", 5, object()]),
    *(("slm_model_id", value, TypeError) for value in [5, b"x", [], object()]),
    ("slm_model_id", torch.nn.Linear(2, 2), TypeError),
    *(("llm_model_id", value, TypeError) for value in [b"model", ["model"]]),
    ("slm_model_id", "./no such folder", ValueError),
    *(("llm_model_id", value, ValueError) for value in [None, "", Path("/no/such/folder")]),
]

HUGE = 10**5000
LONG = "x" * 10**6


class Word(str):
    """Equal to its text; nothing else works."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __len__(self) -> int:
        raise RuntimeError("no len")

    def __iter__(self) -> Any:
        raise RuntimeError("no iter")


class Number(int):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Items(list[Any]):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __len__(self) -> int:
        raise RuntimeError("no len")

    def __iter__(self) -> Any:
        raise RuntimeError("no iter")


class Nothing:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


# Of any argument: taken or refused, but by name and in short.
ODD = [
    HUGE,
    -HUGE,
    Fraction(HUGE, 3),
    LONG,
    [LONG],
    [HUGE],
    list(range(10**6)),
    Word("word"),
    Items([1, "a"]),
    Nothing(),
    [Nothing()],
    np.array(3),
    np.array("a"),
    np.str_("text"),
    {"a": Nothing()},
    torch.zeros(3, device="meta"),
    Decimal("0.5"),
]
