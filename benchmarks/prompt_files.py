"""Files of prompts in the formats in which they are published: one JSON object a line, or gzipped.

    Spec-Bench, MT-Bench   {"question_id": 81, "category": "writing", "turns": ["...", "..."]}
    HumanEval              {"task_id": "HumanEval/0", "prompt": "def ...", ...}
    GSM8K                  {"question": "...", "answer": "..."}

The format is known by the fields, and further ones are passed over. Of several turns the first
is taken, as the others need what the model answered.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# A file that has one of these is Spec-Bench's, which counts MT-Bench's eight categories as one.
SPEC_BENCH = ("translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)
TOGETHER = "mt_bench"
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """A prompt of a file; one that is no chat is the beginning of a text, code for instance."""

    category: str
    text: str
    is_chat: bool


def read(path: Path) -> list[Record]:
    """The prompts of a file, in order.

    ValueError, naming file and line, for what is not UTF-8, not JSON, of no known format, of
    another format than the lines before, or without a text; and for a file that holds nothing.
    """
    records: list[Record] = []
    first: tuple[str, ...] | None = None
    for number, line in _lines(path):
        try:
            fields, record = _parse(line)
            if first not in (None, fields):
                raise ValueError(f"has another format than the lines before: {_listed(fields)}")
        except ValueError as error:
            raise ValueError(f"{path}:{number} {error}") from None
        first = fields
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no prompts")
    if any(record.category in SPEC_BENCH for record in records):
        records = [
            record._replace(category=TOGETHER) if record.category in MT_BENCH else record
            for record in records
        ]
    return records


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of those that are not blank."""
    content = path.read_bytes()
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from None
    # Split as bytes: a JSON string may hold what Unicode counts as the end of a line.
    for number, line in enumerate(content.removeprefix(BOM).splitlines(), 1):
        if line.strip():
            yield number, line


def _parse(line: bytes) -> tuple[tuple[str, ...], Record]:
    """The fields by which the format is known, and the record."""
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    for fields, make in FORMATS.items():
        if found.keys() >= set(fields):
            return fields, make(found)
    known = "; ".join(map(_listed, FORMATS))
    raise ValueError(f"is of no known format: it has {_listed(found)}, but none of {known}")


def _of_turns(found: dict[str, Any]) -> Record:
    turns = found["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("has no list of turns")
    return Record(_text("category", found["category"]), _text("turns[0]", turns[0]), True)


def _of_code(found: dict[str, Any]) -> Record:
    task = _text("task_id", found["task_id"])
    return Record(task.partition("/")[0], _text("prompt", found["prompt"]), False)


def _of_question(found: dict[str, Any]) -> Record:
    return Record("gsm8k", _text("question", found["question"]), True)


FORMATS: dict[tuple[str, ...], Callable[[dict[str, Any]], Record]] = {
    ("category", "turns"): _of_turns,
    ("task_id", "prompt"): _of_code,
    ("question", "answer"): _of_question,
}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has no text in {name}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"has half a character in {name}") from None
    return value


def _listed(fields: Any) -> str:
    return " and ".join(list(fields)[:8]) or "no fields"
