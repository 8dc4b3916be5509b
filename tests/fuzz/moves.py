"""Random calls of a generator, what may come of them, and what a result must be.

Every move draws from a `random.Random`, so a seed replays it. A move returns nothing and raises
AssertionError where a promise is broken.
"""

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from hybridgen import GenerationResult, GenerationStrategy, HybridGenerator
from hybridgen.utils import sample_token

STRATEGIES = ["speculative", "uncertainty", "entropy", "llm", "slm"]
TEXTS = ["def area(radius):\n", "größe straße", "the quick", " ", "日本", "x", "for item in items:"]
Call = dict[str, Any]


class LlmAlone(GenerationStrategy):
    """A user's own strategy; now and then it fails half-way."""

    def generate(self, llm: Any, max_new_tokens: int, request: Any, **rest: Any) -> Any:
        ids = [*request.prompt_ids[0]]
        first = len(ids)
        for position in range(first, first + max_new_tokens):
            for start in range(0, position, 16):
                part = torch.tensor([ids[start : min(start + 16, position)]])
                logits = llm(part, torch.tensor([start]))
            ids.append(sample_token(logits[0, -1], 0.8, seed=request.seed[0], position=position))
            if rest.get("fail_at") == position - first:
                raise LookupError("half-way")
        return rest["tokenizer"].decode(ids[first:]), {"tokens": ids[first:]}


class Silent:
    """Objects that users pass by mistake: each of these raises where one would look at it."""

    def __repr__(self) -> str:
        raise LookupError("no repr")

    def __len__(self) -> int:
        raise LookupError("no length")

    def __iter__(self) -> Any:
        raise LookupError("no items")


HOSTILE: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 2**31,
    lambda: 10**400,
    lambda: 10**5000,
    lambda: -(2**70),
    lambda: 0.5,
    lambda: -0.0,
    lambda: 1e-320,
    lambda: 1e39,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "x" * 100_000,
    lambda: "\ud800",
    lambda: b"bytes",
    lambda: [],
    lambda: [[]],
    lambda: [None],
    lambda: [1, "x"],
    lambda: [-1],
    lambda: [10**9],
    lambda: [True],
    lambda: [1.5],
    lambda: {},
    lambda: {"a": 1},
    lambda: {"input_ids": [1, 2], "attention_mask": [1]},
    lambda: [{"role": "user"}, 3],
    lambda: np.array(3),
    lambda: np.array([1.5]),
    lambda: np.float32(0.5),
    lambda: np.int8(3),
    lambda: torch.tensor(1),
    lambda: torch.tensor([[1, 2], [3, 4]]),
    lambda: torch.zeros(0, dtype=torch.int64),
    lambda: torch.zeros(3, dtype=torch.int64, device="meta"),
    lambda: torch.zeros(3, 3, dtype=torch.int64).to_sparse(),
    lambda: object(),
    lambda: Silent(),
    lambda: int,
    lambda: print,
    lambda: lambda piece: None,
    lambda: {1, 2},
    lambda: iter([1]),
]
ARGUMENTS = [
    *("prompt", "strategy", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("num_drafts", "verification", "threshold", "llm_fraction", "llm_consecutive_tokens"),
    *("evidence", "seed", "stop", "eos_token_id", "ignore_eos", "stream", "print_stats", "frobs"),
]


def random_prompt(draw: random.Random, rows: int | None = None) -> Any:
    """A string or token ids; a list of them for ``rows``."""
    if rows is not None:
        return [random_prompt(draw) for _ in range(rows)]
    if draw.random() < 0.7:
        return draw.choice(TEXTS)
    return [draw.randrange(1, 384) for _ in range(draw.randint(1, 9))]


def random_call(draw: random.Random) -> Call:
    """Arguments that are all in order."""
    rows = draw.choice([None, None, None, 1, 2, 4, 7])  # of 4 in the cache
    options: Call = {
        "prompt": random_prompt(draw, rows),
        "strategy": draw.choice(STRATEGIES),
        "max_new_tokens": draw.randint(1, 24),
        "temperature": draw.choice([0.0, 0.0, 1e-8, 0.3, 0.8, 1.0, 5.0, 1e4]),
        "top_k": draw.choice([0, 0, 1, 5, 50, 1000]),
        "top_p": draw.choice([1.0, 1.0, 0.95, 0.8, 0.1, 1e-9]),
        "min_p": draw.choice([0.0, 0.0, 0.05, 1.0]),
        "num_drafts": draw.choice(["auto", draw.randint(1, 15), draw.randint(1, 15)]),
        "verification": draw.choice(["rejection", "coupled"]),
        "llm_consecutive_tokens": draw.randint(1, 16),
        "evidence": draw.choice(["probs", "logits"]),
        "seed": draw.randrange(2**32),
        "ignore_eos": draw.random() < 0.5,
        "print_stats": False,
    }
    if options["num_drafts"] == "auto":  # by rejection a seed would not repeat its text
        options["verification"] = "coupled"
    options.update(draw.choice([{}, {"threshold": draw.random()}, {"llm_fraction": draw.random()}]))
    if draw.random() < 0.3:
        options["stop"] = [draw.choice("aeo \n"), draw.choice(["the", "\ufffd", "re", "größe"])]
    if draw.random() < 0.2:
        options["eos_token_id"] = draw.sample(range(384), draw.randint(1, 16))
    return options


def run(generator: HybridGenerator, call: Call, **changes: Any) -> GenerationResult:
    """Generate, and hold the result to what every result must be."""
    pieces: list[str] = []
    options = {**call, **changes}
    if "stream" not in options and single(call["prompt"]):
        options["stream"] = pieces.append
    result = generator.generate(**options)
    check_result(generator, call, result)
    if options.get("stream") == pieces.append:
        assert "".join(pieces) == result.text
    return result


def single(prompt: Any) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], int)


def check_result(generator: HybridGenerator, call: Call, result: GenerationResult) -> None:
    """Counts agree, statistics are JSON, and the text is that of the tokens."""
    json.dumps(result.stats, allow_nan=False)
    if single(call["prompt"]):
        check_row(generator, call, call["prompt"], result.text, result.tokens, result.stats)
        return
    rows = result.stats["rows"]
    for row in zip(call["prompt"], result.text, result.tokens, rows, strict=True):
        check_row(generator, call, *row)
    for name in ("total_tokens", "slm_tokens", "llm_tokens", "prompt_tokens", "decode_steps"):
        assert result.stats[name] == sum(row[name] for row in rows)


def check_row(
    generator: HybridGenerator, call: Call, prompt: Any, text: str, tokens: list[int], stats: Call
) -> None:
    total = stats["total_tokens"]
    drafted = stats["slm_tokens"] + stats.get("lookup_tokens", 0)
    assert total == len(tokens) == drafted + stats["llm_tokens"]
    assert 1 <= total <= call["max_new_tokens"]
    assert all(type(token) is int and 0 <= token < 384 for token in tokens)
    if "draft_accepted" in stats:
        assert stats["draft_accepted"] == drafted == sum(stats["accepted_per_position"])
        assert 0 <= stats["acceptance_rate"] <= 1
    ends = set() if call["ignore_eos"] else set(np.atleast_1d(call.get("eos_token_id", 0)).tolist())
    assert not ends & set(tokens[:-1])
    check_text(generator, call, prompt, text, tokens)
    stopped = total < call["max_new_tokens"]
    assert not stopped or tokens[-1] in ends or call.get("stop")


def check_text(
    generator: HybridGenerator, call: Call, prompt: Any, text: str, tokens: list[int]
) -> None:
    """``text`` is the difference of two whole decodes, cut before the first stop string."""
    decode = generator.tokenizer.decode
    ids = generator.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    before = decode(ids, skip_special_tokens=True)
    whole = decode([*ids, *tokens], skip_special_tokens=True)
    if not whole.startswith(before):  # the prompt ended inside a character
        return
    new = whole[len(before) :]
    stops = [(new.find(stop) + len(stop), stop) for stop in call.get("stop", []) if stop in new]
    if stops:
        end, stop = min(stops, key=lambda found: (found[0], -len(found[1])))
        new = new[: end - len(stop)]
    assert text == new


# --- moves ---


def valid_call(generator: HybridGenerator, draw: random.Random) -> None:
    """Works, and again with the same seed; where the text is promised to be the LLM's, it is."""
    call = random_call(draw)
    result = run(generator, call)
    assert run(generator, call).tokens == result.tokens
    greedy = call["temperature"] == 0
    if call["strategy"] == "speculative" and (greedy or call["verification"] == "coupled"):
        assert run(generator, call, strategy="llm").tokens == result.tokens


def hostile_argument(generator: HybridGenerator, draw: random.Random) -> None:
    """A ValueError or TypeError that names the argument, or a result."""
    call = random_call(draw)
    name = draw.choice(ARGUMENTS)
    call[name] = draw.choice(HOSTILE)()
    try:
        result = generator.generate(**call)
    except (ValueError, TypeError) as error:
        assert name in str(error), error
        assert len(str(error)) < 2000
    else:
        json.dumps(result.stats, allow_nan=False)
        assert isinstance(result.text, (str, list))


def raising_stream(generator: HybridGenerator, draw: random.Random) -> None:
    """What a stream raises comes out as it is."""
    error = draw.choice([KeyboardInterrupt, LookupError, ValueError, SystemExit])("from the stream")
    pieces, last = count(), draw.randint(0, 5)

    def stream(piece: str) -> None:
        if next(pieces) == last:
            raise error

    call = {**random_call(draw), "prompt": draw.choice(TEXTS), "stream": stream}
    try:
        generator.generate(**call)
    except BaseException as raised:
        assert raised is error


def call_from_a_stream(generator: HybridGenerator, draw: random.Random) -> None:
    """Refused, and the outer call goes on."""
    inner = random_call(draw)

    def stream(piece: str) -> None:
        with pytest.raises(RuntimeError, match="inside another call"):
            generator.generate(**inner)

    call = {**random_call(draw), "prompt": draw.choice(TEXTS)}
    assert run(generator, call, stream=stream).tokens == run(generator, call).tokens


def two_threads(generator: HybridGenerator, draw: random.Random) -> None:
    """Each call's tokens are its own."""
    calls = [random_call(draw) for _ in range(4)]
    expected = [generator.generate(**call).tokens for call in calls]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda call: run(generator, call).tokens, calls))
    assert found == expected


def custom_strategy(generator: HybridGenerator, draw: random.Random) -> None:
    """A strategy of the user's own, whole or failing half-way."""
    call: Call = {"prompt": draw.choice(TEXTS), "strategy": "own", "print_stats": False}
    call.update(max_new_tokens=draw.randint(1, 12), seed=draw.randrange(100))
    generator.strategies["own"] = LlmAlone()
    try:
        result = generator.generate(**call)
        assert generator.generate(**call).tokens == result.tokens
        if call["max_new_tokens"] > 3:
            with pytest.raises(LookupError, match="half-way"):
                generator.generate(**call, fail_at=2)
    finally:
        del generator.strategies["own"]


def stale_memory(generator: HybridGenerator, draw: random.Random) -> None:
    """The memory that calls share holds anything between two of them."""
    call = random_call(draw)
    expected = run(generator, call).tokens
    generator.pair.arena.workspace.fill_(draw.randrange(256))
    for cache in generator.pair.arena.caches:
        cache.fill_(draw.choice([0.0, 1e4, -1e4]))
    assert run(generator, call).tokens == expected


MOVES = {
    valid_call: 6,
    hostile_argument: 12,
    raising_stream: 2,
    call_from_a_stream: 1,
    two_threads: 1,
    custom_strategy: 1,
    stale_memory: 1,
}


def random_move(draw: random.Random) -> Callable[[HybridGenerator, random.Random], None]:
    return draw.choices(list(MOVES), weights=list(MOVES.values()))[0]
