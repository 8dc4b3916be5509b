"""The host's loop, with a device that is scripted: late, out of step, failing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridgen.engine.loop import Outcome, Placed, Program, Text, run
from hybridgen.engine.reports import Arrival
from hybridgen.kernels.verify import (
    BROKEN,
    DONE,
    FLAGS,
    HEAD,
    LENGTH,
    NOTE,
    PENDING,
    SOURCE_LLM,
    SOURCE_SLM,
    WINDOW,
    WRITER,
)


class Late:
    """Reports arrive when they are waited for, and say what was so when they were sent.

    Two slots: the loop must have read one before it is sent anew.
    """

    ahead = 1

    def __init__(self, log: list[str]) -> None:
        self.log, self.sent, self.unread = log, 0, 0

    def post(self, report: Tensor) -> Arrival:
        self.sent += 1
        self.unread += 1
        assert self.unread <= self.ahead + 1, "a slot was overwritten before it was read"
        number, told = self.sent, report.tolist()

        def arrive() -> list[list[int]]:
            self.unread -= 1
            self.log.append(f"read {number}")
            return told

        return arrive


@dataclass
class Script:
    """A device of ``width`` rows that writes what each text is to get, round by round.

    gains[i]    tokens that text i gets in the rounds of its life; the last ends it
    """

    width: int
    gains: Sequence[Sequence[int]]
    broken: tuple[int, int] | None = None  # text, and the round of its life

    def __post_init__(self) -> None:
        self.log: list[str] = []
        self.reports = Late(self.log)
        self.rows = SimpleNamespace(
            report=torch.zeros(self.width, HEAD + WINDOW, dtype=torch.int64),
            done=torch.ones(self.width, dtype=torch.bool),
        )
        self.inside: list[tuple[int, int] | None] = [None] * self.width  # text, its rounds so far
        self.loads: list[list[tuple[int, int]]] = []

    def texts(self, prompt: int = 3) -> list[Text]:
        return [Text(i, [7] * (prompt + i), 10**6, i) for i in range(len(self.gains))]

    def load(self, placed: Placed) -> None:
        self.loads.append([(row, text.index) for row, text in placed])
        for row, text in placed:
            self.inside[row] = text.index, 0
            self.rows.done[row] = False
            self.rows.report[row] = 0
            self.rows.report[row, LENGTH] = len(text.prompt)

    def round(self) -> None:
        for row, life in enumerate(self.inside):
            if life is None or self.rows.done[row]:
                continue
            index, lived = life
            report, gains = self.rows.report[row], self.gains[index]
            if self.broken == life:
                self.rows.done[row] = True
                report[FLAGS] = DONE | BROKEN
                continue
            # A row that only a watcher ends goes on writing, as a device does.
            gained = gains[lived] if lived < len(gains) else gains[-1]
            for i in range(gained):
                place = int(report[LENGTH])
                source = SOURCE_LLM if i == gained - 1 else SOURCE_SLM
                report[HEAD + place % WINDOW] = 100 * index + place + source * WRITER
                report[LENGTH] += 1
            report[NOTE] = lived
            report[PENDING] = 10 * index
            self.inside[row] = index, lived + 1
            if lived + 1 == len(gains) and index not in self.endless:
                self.rows.done[row] = True
                report[FLAGS] = DONE

    endless: Sequence[int] = ()


class Rounds(Program):
    """The script's round, by number; keeps the outcomes."""

    def __init__(self, script: Script, waits: bool = False) -> None:
        self.script, self.waits = script, waits
        self.enqueued = 0
        self.outcomes: list[Outcome] = []

    def enqueue(self) -> int:
        self.enqueued += 1
        self.script.log.append(f"enqueue {self.enqueued}")
        self.script.round()
        return self.enqueued

    def reported(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def go(script: Script, program: Program | None = None, **options: Any) -> list[Text]:
    texts = script.texts()
    batch: Any = script
    run(batch, program or Rounds(script), texts, script.load, **options)
    return texts


def expected(script: Script, index: int) -> list[int]:
    first = 3 + index
    return [100 * index + place for place in range(first, first + sum(script.gains[index]))]


def test_the_host_stays_one_round_ahead() -> None:
    script = Script(1, [[1, 1, 1, 1]])
    go(script)
    assert script.log == [
        "enqueue 1", "enqueue 2", "read 1", "enqueue 3", "read 2", "enqueue 4", "read 3",
        "enqueue 5", "read 4",
    ]  # fmt: skip


def test_a_program_that_waits_is_never_ahead() -> None:
    script = Script(1, [[1, 1, 1]])
    go(script, Rounds(script, waits=True))
    assert script.log == ["enqueue 1", "read 1", "enqueue 2", "read 2", "enqueue 3", "read 3"]


def test_texts_have_what_their_rows_wrote_and_by_whom() -> None:
    script = Script(2, [[3, 1, 5], [2, 2, 2, 2]])
    texts = go(script)
    for text in texts:
        assert text.tokens == expected(script, text.index)
        runs = ([SOURCE_SLM] * (n - 1) + [SOURCE_LLM] for n in script.gains[text.index])
        assert text.sources == [*chain.from_iterable(runs)]
        assert text.rounds == [(i + 1, n) for i, n in enumerate(script.gains[text.index])]
        assert text.note == len(script.gains[text.index]) - 1
        assert text.length == len(text.prompt) + len(text.tokens)
        assert text.seconds > 0


ARRIVALS = {
    "one after the other": [[1] * (i + 1) for i in range(9)],
    "all at once": [[2, 2]] * 9,
    "one that lasts": [[1] * 30] + [[4]] * 8,
    "blocks of every size": [[16, 1, 7], [3], [16, 16, 16], [1], [2, 9], [5], [1, 1], [8], [16]],
}


@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 12])
@pytest.mark.parametrize("gains", ARRIVALS.values(), ids=ARRIVALS.keys())
def test_rows_are_refilled_as_they_end(width: int, gains: list[list[int]]) -> None:
    script = Script(width, gains)
    ended: list[int] = []
    texts = go(script, ended=lambda text: ended.append(text.index))
    assert [text.tokens for text in texts] == [expected(script, i) for i in range(9)]
    assert sorted(ended) == [*range(9)]
    seated = [index for load in script.loads for _, index in load]
    assert seated == [*range(9)], "texts are to begin in their order, each once"
    assert len(script.loads[0]) == min(width, 9)


def test_the_others_go_on_while_a_row_is_refilled() -> None:
    """Rows 0 and 1; the second is refilled three times while the first is being written."""
    script = Script(2, [[1] * 12, [1], [1], [1]])
    program = Rounds(script)
    go(script, program)
    assert program.enqueued == 12 + 1  # one ahead, and none for the texts beside
    assert script.loads == [[(0, 0), (1, 1)], [(1, 2)], [(1, 3)]]


def test_a_text_that_a_watcher_ends_is_not_shown_any_more() -> None:
    """Its row writes on in the round that was enqueued already; the text beside keeps its own."""
    script = Script(2, [[4, 4, 4], [3, 3, 3, 3], [5]])
    script.endless = (0,)
    seen: list[tuple[int, list[int]]] = []

    def watch(text: Text, new: Sequence[int]) -> bool:
        seen.append((text.index, list(new)))
        return text.index == 0 and len(text.tokens) >= 8

    texts = go(script, watchers=[watch, lambda *_: False])
    assert texts[0].tokens == expected(script, 0)[:8]
    assert [text.tokens for text in texts[1:]] == [expected(script, 1), expected(script, 2)]
    for text in texts:
        told = chain.from_iterable(new for index, new in seen if index == text.index)
        assert [*told] == text.tokens
    assert script.loads == [[(0, 0), (1, 1)], [(0, 2)]]


def test_every_watcher_sees_the_last_tokens() -> None:
    script, seen = Script(1, [[1, 1, 1]]), []

    def ends(text: Text, new: Sequence[int]) -> bool:
        return len(text.tokens) == 2

    def notes(text: Text, new: Sequence[int]) -> bool:
        seen.append(len(text.tokens))
        return False

    script.endless = (0,)
    go(script, watchers=[ends, notes])
    assert seen == [1, 2]
    assert bool(script.rows.done[0]), "the device writes on for nobody"


def test_a_program_hears_of_each_round_and_only_of_living_texts() -> None:
    script = Script(2, [[1, 2], [3, 3, 3]])
    program = Rounds(script)
    go(script, program)
    assert [outcome.name for outcome in program.outcomes] == [1, 2, 3]
    assert [outcome.gained for outcome in program.outcomes] == [[1, 3], [2, 3], [3]]
    assert [outcome.texts for outcome in program.outcomes] == [[0, 1], [0, 1], [1]]
    assert [outcome.to_come for outcome in program.outcomes] == [
        [999996, 999993],
        [0, 999990],  # the first text has ended
        [0],
    ]
    assert [outcome.left for outcome in program.outcomes] == [[0, 10], [0, 10], [10]]
    assert [outcome.pending for outcome in program.outcomes] == [10, 10, 10]


def test_rounds_beside_a_load_are_not_timed() -> None:
    script = Script(1, [[1] * 5, [1] * 5])
    program = Rounds(script)
    go(script, program)
    timed = [outcome.seconds is not None for outcome in program.outcomes]
    # Two rounds share their time with each load: the one that ran then, and the one behind it. The
    # round that was enqueued past the end of the first text is among them.
    assert timed == [False, False, True, True, True, False, False, True, True, True, True]
    waits = Rounds(again := Script(1, [[1] * 5]), waits=True)
    go(again, waits)
    assert all(outcome.seconds is not None for outcome in waits.outcomes)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_nan_is_told_by_the_prompts_number(width: int) -> None:
    script = Script(width, [[1, 1], [1, 1], [1, 1], [1, 1]], broken=(2, 1))
    with pytest.raises(ValueError, match=r"row\(s\) \[2\] of the prompt, after \[6\] tokens"):
        go(script)


def fail(*arguments: Any) -> Any:
    raise LookupError("no such thing")


@pytest.mark.parametrize("where", ["round", "load", "watcher", "end"])
def test_an_error_goes_through(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(2, [[1, 1], [1, 1], [1, 1]])
    if where in ("round", "load"):
        monkeypatch.setattr(script, where, fail)
    options: dict[str, Any] = {"watcher": {"watchers": [fail]}, "end": {"ended": fail}}
    with pytest.raises(LookupError, match="no such thing"):
        go(script, **options.get(where, {}))


def test_no_texts_are_no_rounds() -> None:
    script = Script(2, [])
    program = Rounds(script)
    assert go(script, program) == []
    assert program.enqueued == 0
