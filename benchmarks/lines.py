"""Results: one JSON object a line, written as they come; a report is made of nothing else."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Line:
    """One contender under one setting.

    suite       "decode", "routing", "peers", "quick", ...
    pair        name of the pair
    contender   name; "llm", "speculative, K = 4", "transformers", "transformers assisted", ...
    setting     what all contenders of a comparison share: {"experiment": "drafts", "prompts":
                "code", "num_prompts": 6, "new_tokens": 128, "batch": 1, "sampling":
                {"temperature": 0.0}, "dtypes": {"slm": "float32", "llm": "bfloat16"}, "device":
                "cpu", "threads": 2}, and "weights": {"slm_weights": "int8"} where they are int8
    options     the contender's own: {"num_drafts": 4}, {"llm_fraction": 0.2}, {"threshold": ...}
    facts       of the pair: {"agreement": 0.8}
    text        "right", "sampled" (drawn, as far as that can be told), or why it is wrong; if wrong
                nothing is measured, and the lists below are empty
    seconds     of each repeat, in which all prompts are written once
    first       seconds until the first token: of a call that writes one, one for each repeat
    tokens      new ones of one repeat, all prompts together
    statistics  ours, over all repeats: "tokens_per_round", "acceptance_per_position": [...],
                "acceptance_rate", "llm_fraction", "draft_cost" (seconds of a draft over seconds of
                an LLM step), "quality" (mean log-likelihood by the LLM, nats), as they apply
    floor       {"bandwidth": bytes a second measured in this run, "bytes": weights that a token
                cannot but read, "seconds": their quotient, a token}; empty where none is stated
    conditions  of `conditions.surroundings`
    """

    suite: str
    pair: str
    contender: str
    setting: dict[str, Any]
    text: str
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def is_right(self) -> bool:
        return self.text in ("right", "sampled")

    @property
    def comparison(self) -> str:
        """Lines that may be compared, repeat by repeat, have the same one."""
        return json.dumps([self.suite, self.pair, self.setting, self.facts], sort_keys=True)


def append(path: Path, line: Line) -> None:
    """Add a line to a file, which need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line), ensure_ascii=False, allow_nan=False) + "\n")


def held(path: Path) -> list[Line]:
    """Those of a file, which need not exist."""
    return read([path]) if path.exists() else []


def read(paths: Iterable[Path]) -> list[Line]:
    """All lines of the files, in order; ValueError where one is of another schema."""
    known = {each.name for each in fields(Line)}
    found = []
    for path in paths:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            given = json.loads(text)
            if not isinstance(given, dict) or given.get("schema") != SCHEMA:
                raise ValueError(f"{path}:{number} is no result of schema {SCHEMA}")
            found.append(Line(**{key: value for key, value in given.items() if key in known}))
    return found
