"""Committing a block: cut at the first eos and at the limit, each token marked with its writer."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridgen.kernels.verify import (
    BROKEN,
    DONE,
    FLAGS,
    HEAD,
    LENGTH,
    NOTE,
    PENDING,
    SOURCE_LLM,
    SOURCE_LOOKUP,
    SOURCE_SLM,
    WINDOW,
    WRITER,
    commit,
)

EOS, OTHER_EOS = 2, 3
WIDTH = 30


class Written(NamedTuple):
    """What `commit` writes."""

    tokens: Tensor
    length: Tensor
    done: Tensor
    report: Tensor

    def copy(self) -> "Written":
        return Written(*(field.clone() for field in self))


class Block(NamedTuple):
    """What `commit` reads."""

    new_tokens: Tensor
    count: Tensor
    writer: int
    drafter: int
    broken: Tensor
    limit: Tensor
    eos: Tensor
    truncation: Tensor | None = None


def state(rows: int = 1, length: int = 10) -> Written:
    """Rows with `length` tokens 9 of the prompt and, beyond them, a filling of 7 to be kept."""
    tokens = torch.full((rows, WIDTH), 7)
    tokens[:, :length] = 9
    report = torch.full((rows, HEAD + WINDOW), -7)
    report[:, LENGTH], report[:, FLAGS] = length, 0
    done = torch.zeros(rows, dtype=torch.bool)
    return Written(tokens, torch.full((rows,), length), done, report)


def block(
    *rows: list[int], count: list[int] | None = None, limit: int = WIDTH, broken: bool = False
) -> Block:
    """Blocks of drafts with one token of the LLM at the end of `count`."""
    counts = torch.tensor(count or [len(row) for row in rows])
    return Block(
        torch.tensor(rows),
        counts,
        SOURCE_LLM,
        SOURCE_SLM,
        torch.full((len(rows),), broken),
        torch.full((len(rows),), limit),
        torch.tensor([[EOS, -1, -1]]).repeat(len(rows), 1),
    )


def committed(before: Written, given: Block) -> Written:
    after = before.copy()
    assert commit(*after, *given) is None
    return after


def oracle(before: Written, given: Block) -> Written:
    """The rules again, a token at a time."""
    after = before.copy()
    for b in range(len(before.length)):
        if before.done[b]:
            continue
        if given.broken[b]:
            after.done[b] = True
            after.report[b, FLAGS] |= DONE | BROKEN
            continue
        for i in range(int(given.count[b])):
            if after.done[b] or after.length[b] >= given.limit[b]:
                break
            token = int(given.new_tokens[b, i])
            source = given.writer if i == given.count[b] - 1 else given.drafter
            after.tokens[b, after.length[b]] = token
            after.report[b, HEAD + after.length[b] % WINDOW] = token + source * WRITER
            after.length[b] += 1
            if token in given.eos[b].tolist():
                after.done[b] = True
        if after.length[b] >= given.limit[b]:
            after.done[b] = True
        after.report[b, LENGTH] = after.length[b]
        after.report[b, FLAGS] = DONE * int(after.done[b])
    return after


def assert_equal(actual: Written, expected: Written) -> None:
    for name, a, b in zip(Written._fields, actual, expected, strict=True):
        assert torch.equal(a, b), name


def test_appends_the_accepted_drafts_and_the_token_after_them() -> None:
    after = committed(state(), block([11, 12, 13, 99, 99], count=[3]))
    assert after.tokens[0, 9:15].tolist() == [9, 11, 12, 13, 7, 7]
    writers = [SOURCE_SLM, SOURCE_SLM, SOURCE_LLM]
    told = [token + writer * WRITER for token, writer in zip([11, 12, 13], writers, strict=True)]
    assert after.report[0, HEAD + 9 : HEAD + 15].tolist() == [-7, *told, -7, -7]
    assert after.report[0, :HEAD].tolist() == [13, 0, -7, -7]
    assert after.length.tolist() == [13] and after.done.tolist() == [False]


@pytest.mark.parametrize("offset", range(5))
def test_ends_with_the_first_eos(offset: int) -> None:
    """At every place in the block; a second eos behind it is cut off with the rest."""
    tokens = [11, 12, 13, 14, 15]
    tokens[offset] = EOS
    tokens[4] = EOS
    after = committed(state(), block(tokens))
    assert after.length.tolist() == [10 + offset + 1] and after.done.tolist() == [True]
    assert after.tokens[0, 10:].tolist() == tokens[: offset + 1] + [7] * (20 - offset - 1)


def test_an_eos_behind_the_count_does_not_end() -> None:
    after = committed(state(), block([11, 12, EOS, EOS], count=[2]))
    assert after.length.tolist() == [12] and after.done.tolist() == [False]


@pytest.mark.parametrize("room", range(7))
def test_ends_at_the_limit(room: int) -> None:
    """At every place in the block, and behind it; reached exactly it is reached."""
    after = committed(state(), block([11, 12, 13, 14, 15], limit=10 + room))
    assert after.length.tolist() == [10 + min(room, 5)] and after.done.tolist() == [room <= 5]
    assert after.tokens[0, 10:17].tolist() == ([11, 12, 13, 14, 15][:room] + [7] * 7)[:7]


@pytest.mark.parametrize("offset", range(3))
def test_a_limit_before_the_eos_cuts_it_off(offset: int) -> None:
    after = committed(state(), block([11, 12, 13, EOS], limit=10 + offset))
    assert EOS not in after.tokens[0].tolist() and after.done.tolist() == [True]


def test_padding_of_the_eos_list_is_no_token() -> None:
    given = block([0, 1, 4])._replace(eos=torch.full((1, 4), -1))
    assert committed(state(), given).length.tolist() == [13]


def test_a_row_may_already_be_beyond_its_limit() -> None:
    after = committed(state(), block([11, 12], limit=8))
    assert after.length.tolist() == [10] and after.done.tolist() == [True]


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_of_a_done_row_changes(broken: bool) -> None:
    before = state()._replace(done=torch.tensor([True]))
    assert_equal(committed(before, block([11, 12, EOS], broken=broken)), before)


def test_a_broken_row_is_flagged_and_ended_and_keeps_what_it_had() -> None:
    before = state()
    after = committed(before, block([11, 12, 13], broken=True))
    assert after.done.tolist() == [True] and after.report[0, FLAGS] == DONE | BROKEN
    after.report[0, FLAGS] = before.report[0, FLAGS]
    assert_equal(after._replace(done=before.done), before)


def test_the_place_of_a_token_in_the_report_comes_round_again() -> None:
    """Whoever has read a report sees what came since, whatever the length."""
    written = state(length=2)._replace(tokens=torch.zeros(1, 200, dtype=torch.int64))
    for first in range(2, 180, 6):
        new = [100 + place for place in range(first, first + 6)]
        commit(*written, *block(new, limit=200))
        told = [int(written.report[0, HEAD + p % WINDOW]) for p in range(first, first + 6)]
        assert [word % WRITER for word in told] == new
        assert [word // WRITER for word in told] == 5 * [SOURCE_SLM] + [SOURCE_LLM]
    assert written.report[0, [PENDING, NOTE]].tolist() == [-7, -7]  # they are the round's own


def test_writes_in_place_and_nothing_else() -> None:
    before, given = state(3), block([11, 12], [13, EOS], [14, 15])
    copies = [field.clone() if isinstance(field, Tensor) else field for field in given]
    addresses = [field.data_ptr() for field in before]
    commit(*before, *given)
    assert addresses == [field.data_ptr() for field in before]
    for field, copy in zip(given, copies, strict=True):
        assert torch.equal(field, copy) if isinstance(field, Tensor) else field == copy


def test_columns_of_a_wider_state() -> None:
    """Rows of a larger buffer, as views: written where they lie."""
    whole = state(6)
    part = Written(*(field[1:5:2] for field in whole))
    commit(*part, *block([11, 12], [13, 14]))
    assert whole.length.tolist() == [10, 12, 10, 12, 10, 10]
    assert whole.tokens[:, 10].tolist() == [7, 11, 7, 13, 7, 7]


@settings(max_examples=200)
@given(st.data())
def test_follows_the_rules_row_by_row(data: st.DataObject) -> None:
    """Any mixture of rows, lengths, limits, eos ids and writers, against the loop above."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))

    def tensor(low: int, high: int, *shape: int) -> Tensor:
        size = int(torch.Size(shape).numel())
        return torch.tensor(
            data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        ).reshape(shape)

    before = state(rows)._replace(
        length=tensor(0, 12, rows),
        done=tensor(0, 4, rows) == 0,
    )
    given_block = Block(
        tensor(0, 6, rows, columns),
        tensor(0, columns, rows),
        data.draw(st.sampled_from([SOURCE_SLM, SOURCE_LLM])),
        data.draw(st.sampled_from([SOURCE_SLM, SOURCE_LOOKUP])),
        tensor(0, 4, rows) == 0,
        tensor(6, 16, rows),
        torch.cat([tensor(-1, OTHER_EOS, rows, 2), torch.full((rows, 1), -1)], 1),
    )
    assert_equal(committed(before, given_block), oracle(before, given_block))
