"""Many prompts from a file, a result a line: what `HybridGenerator.generate_file` does.

A line of the prompts is JSON: a string, or an object with "prompt" (a string, token ids or chat
messages) or "messages". A line of the results is an object with "index" (of the prompt, from 0 on;
blank lines do not count), "prompt", "text", "tokens" and "stats". Results are written as they come
in, in the prompts' order, and what is there already is not written again.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hybridgen.checks import quoted
from hybridgen.engine.progress import shows_progress
from hybridgen.fields import Facts
from hybridgen.parameters import NEW_TOKENS, check_seed
from hybridgen.prompts import Prompt, Room
from hybridgen.strategies.base import Strategy

if TYPE_CHECKING:
    from hybridgen.generator import HybridGenerator

CHUNKS = 8  # prompts of one call, for each row: few rows rest at its end, and not much is lost
UNFIT = ("stream", "reuse", "print_stats")
BEGINNING = b'{"index": '


@dataclass(frozen=True)
class Line:
    """A prompt of the file, and what is passed to `generate` for it."""

    index: int
    number: int
    written: Any
    prompt: Any


@dataclass(frozen=True)
class FileRun:
    """What a call has done.

    prompts    in the file
    skipped    of these, that had results before
    tokens     written by this call, in ``seconds``
    seed       of the file's first prompt; the i-th has seed + i, unless a list was given
    """

    prompts: int
    skipped: int
    tokens: int
    seconds: float
    seed: int | None

    def __str__(self) -> str:
        speed = self.tokens / self.seconds if self.seconds > 0 else 0.0
        before = f" ({self.skipped} done before)" if self.skipped else ""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return (
            f"{self.prompts} prompts{before}: {self.tokens} tokens in {self.seconds:.2f}s, "
            f"{speed:.2f} tok/s{seed}"
        )


def generate_file(
    generator: "HybridGenerator",
    prompts: str | os.PathLike[str],
    results: str | os.PathLike[str],
    prepare: Callable[[Any], Any] | None = None,
    **options: Any,
) -> FileRun:
    """See `HybridGenerator.generate_file`."""
    for name in UNFIT:
        if name in options:
            raise TypeError(f"generate_file() does not take {name}")
    lines = read_prompts(Path(prompts), prepare)
    check_lengths(generator, Path(prompts), lines, options)
    seeds = check_seed("seed", options.pop("seed", None), Facts(len(lines) or 1))
    done = read_results(Path(results), lines)
    left = [line for line in lines if line.index not in done]
    begun, tokens = time.perf_counter(), 0
    with (
        open(results, "ab") as file,
        tqdm(
            total=len(lines),
            initial=len(done),
            unit="prompt",
            disable=not shows_progress(),
            leave=False,
        ) as bar,
    ):
        for chunk in chunks(left, most_rows(generator, options)):
            with named_lines(Path(prompts), chunk):
                result = generator.generate(
                    [line.prompt for line in chunk],
                    seed=[seeds[line.index] for line in chunk],
                    print_stats=False,
                    **options,
                )
            rows = zip(chunk, result.text, result.tokens, result.stats["rows"], strict=True)
            file.write(b"".join(result_line(*row) for row in rows))
            file.flush()
            tokens += result.stats["total_tokens"]
            bar.update(len(chunk))
    seconds = time.perf_counter() - begun
    return FileRun(len(lines), len(done), tokens, seconds, seeds[0] if lines else None)


def read_prompts(path: Path, prepare: Callable[[Any], Any] | None) -> list[Line]:
    """The prompts; ValueError, naming the line, for what is none."""
    found: list[Line] = []
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        if not raw.strip():
            continue
        try:
            written = json.loads(raw)
            if isinstance(written, dict):
                (written,) = (written[key] for key in ("prompt", "messages") if key in written)
            if not isinstance(written, (str, list)):
                raise ValueError
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: it must be a JSON string, or an object with "
                f'"prompt" or "messages", got {quoted(raw.decode("utf-8", "replace"))}'
            ) from error
        with at(path, number):
            prompt = written if prepare is None else prepare(written)
        found.append(Line(len(found), number, written, prompt))
    return found


def check_lengths(
    generator: "HybridGenerator", path: Path, lines: Sequence[Line], options: dict[str, Any]
) -> None:
    """Refuse a prompt that does not fit, naming its line, before the first one is continued."""
    new = options.get("max_new_tokens", NEW_TOKENS.default)
    positions = generator.pair.context()
    if isinstance(new, int) and 0 < new < positions:  # else `generate` says what is wrong with it
        for line in lines:
            with at(path, line.number):
                prompt, room = Prompt(generator.tokenizer, line.prompt), Room(positions, new)
                if prompt.is_batch:
                    raise ValueError("prompt must be one prompt, not a list of them")
                (ids,) = prompt.token_ids(room)
                if not ids:
                    raise ValueError("prompt is empty: it must have at least one token")
                room.check("prompt", len(ids))


def read_results(path: Path, lines: Sequence[Line]) -> set[int]:
    """The indices that have results. A last line that was not written to its end is cut off.

    Raises ValueError for a file that holds anything but results of these prompts.
    """
    if not path.exists():
        return set()
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    done = set()
    for number, raw in enumerate(whole.splitlines(), 1):
        try:
            found = json.loads(raw)
            index, prompt = found["index"], found["prompt"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: it is no result") from error
        if type(index) is not int or not 0 <= index < len(lines):
            raise ValueError(f"{path}, line {number}: there is no prompt {quoted(index)}")
        if lines[index].written != prompt:
            raise ValueError(
                f"{path}, line {number}: it is the result of another prompt {index} than the "
                "file's: write the results elsewhere, or take the line out"
            )
        done.add(index)
    if rest:
        if not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
            raise ValueError(f"{path}: it ends with what is no result")
        os.truncate(path, len(whole) + len(newline))
    return done


def result_line(line: Line, text: str, tokens: list[int], stats: dict[str, Any]) -> bytes:
    result = {"index": line.index, "prompt": line.written, "text": text}
    result |= {"tokens": tokens, "stats": stats}
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"


def most_rows(generator: "HybridGenerator", options: dict[str, Any]) -> int:
    """Prompts of one call; a custom strategy takes no more than there are rows."""
    rows = generator.pair.max_rows
    chosen = generator.strategies.get(options.get("strategy", "speculative"))
    return CHUNKS * rows if isinstance(chosen, Strategy) else rows


def chunks(lines: Sequence[Line], size: int) -> Iterator[Sequence[Line]]:
    return (lines[start : start + size] for start in range(0, len(lines), size))


@contextmanager
def at(path: Path, number: int) -> Iterator[None]:
    """Name the file and the line in a refusal."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}, line {number}: {error}") from error


@contextmanager
def named_lines(path: Path, chunk: Sequence[Line]) -> Iterator[None]:
    """Name the line of the prompt that a refusal is about."""
    try:
        yield
    except ValueError as error:
        row = re.match(r"prompt\[(\d+)\]", str(error))
        if row is None:
            raise
        number = chunk[int(row[1])].number
        raise ValueError(f"{path}, line {number}: prompt{str(error)[row.end() :]}") from error
