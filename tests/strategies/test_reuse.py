"""Calls that go on from what the last one left in the caches write what fresh ones write.

The models remember each token that they were fed (`TableDecoder`), so that what a call says it has
left can be compared with what is there.
"""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_decoder import TableDecoder, random_table
from torch import Tensor

from hybridgen.engine.loop import Text
from hybridgen.engine.pair import Pair
from hybridgen.prefix import common_prefix
from hybridgen.prompts import Prompt
from hybridgen.request import Request, make_request
from hybridgen.strategies import built_in_strategies
from hybridgen.strategies.base import RoundStrategy
from hybridgen.strategies.declarations import BUILT_IN
from hybridgen.text import Stopped

VOCAB, ROWS, POSITIONS = 6, 2, 120
ENTROPY = 1.2  # about every second token is the LLM's


@cache
def strategies() -> dict[str, RoundStrategy]:
    found = built_in_strategies(has_slm=True)
    found["lookup"] = built_in_strategies(has_slm=False)["speculative"]
    return {name: each for name, each in found.items() if isinstance(each, RoundStrategy)}


class Lenient(TableDecoder):
    """It reads what was never fed as 0: of a row that is not routed nobody looks at the logits."""

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        positions = (start[:, None] + torch.arange(tokens.shape[1])).clamp_min(0)
        self.fed[: len(tokens)].scatter_(1, positions, tokens + 1.0)
        previous = self.fed[: len(tokens)].gather(1, (positions - 1).clamp_min(0)).long() - 1
        return self.table[previous.clamp_min(0), tokens]


def pair() -> Pair:
    target = random_table(VOCAB, seed=3)
    draft = random_table(VOCAB, seed=4, like=target, noise=0.5)
    return Pair(Lenient(draft), Lenient(target), ROWS, POSITIONS)


Options = dict[str, Any]
OPTIONS = st.one_of(
    st.builds(
        lambda k, how: ("speculative", {"num_drafts": k, "verification": how}),
        st.sampled_from([1, 2, 5, "auto"]),
        st.sampled_from(["coupled", "rejection"]),
    ),
    st.builds(
        lambda n: ("entropy", {"threshold": ENTROPY, "llm_consecutive_tokens": n}),
        st.integers(1, 4),
    ),
    st.sampled_from([("llm", {}), ("slm", {}), ("lookup", {"num_drafts": 3})]),
)


class Turn:
    """One call: how it is written, and what its prompts are made of.

    keep      of each prompt's row, the share of the text before that the prompt begins with
    more      tokens that follow
    cut       new tokens of each text that count, as if a stop string had been there
    """

    def __init__(
        self,
        how: tuple[str, Options],
        keep: list[float],
        more: list[list[int]],
        new: int,
        cut: int,
        temperature: float,
        eos: bool,
    ) -> None:
        self.how, self.keep, self.more, self.new, self.cut = how, keep, more, new, cut
        self.temperature, self.eos = temperature, eos

    def __repr__(self) -> str:
        return f"Turn({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def turns() -> st.SearchStrategy[Turn]:
    rows = ROWS + 1  # one of them is put into a row where another has ended
    return st.builds(
        Turn,
        how=OPTIONS,
        keep=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0]), min_size=1, max_size=rows),
        more=st.lists(
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4),
            min_size=rows,
            max_size=rows,
        ),
        new=st.integers(1, 12),
        cut=st.sampled_from([3, 100]),
        temperature=st.sampled_from([0.0, 1.0]),
        eos=st.booleans(),
    )


def write(pair: Pair, request: Request, cut: int, name: str) -> tuple[list[Text], list[list[int]]]:
    """The texts of a call, and the tokens of each that count."""
    strategy, kept = strategies()[name], [0] * request.rows

    def stops(text: Text, new: Any) -> bool:
        kept[text.index] = min(len(text.tokens), cut)
        return len(text.tokens) >= cut

    with pair.turn():
        batch, program = strategy.prepare(pair, request)
        texts = strategy.write(pair, batch, program, request, [stops])
        strategy.leave(pair, batch, request, texts, kept)
    return texts, [text.tokens[:count] for text, count in zip(texts, kept, strict=True)]


def check_what_is_left(pair: Pair) -> None:
    """Every token that is said to be read was fed where it stands."""
    left = pair._left
    for model, read in zip((pair.slm, pair.llm), left.read.tolist(), strict=True):
        for row, tokens in left.tokens.items():
            count = min(read[row], len(tokens))
            assert (model.fed[row, :count] - 1).tolist() == list(tokens[:count])


def asked(turn: Turn, texts: list[list[int]], reuse: bool) -> tuple[Request, str]:
    name, options = turn.how
    prompts = []
    for keep, more, text in zip(turn.keep, turn.more, texts, strict=False):
        prompts.append(text[: round(keep * len(text))] + more)
    declared = {field.name for each in BUILT_IN for field in each.options}
    request = make_request(
        Prompt(None, prompts),
        vocab_size=VOCAB,
        max_positions=POSITIONS,
        default_eos=[0] if turn.eos else [],
        strategy="speculative" if name == "lookup" else name,
        max_new_tokens=turn.new,
        temperature=turn.temperature,
        seed=5,
        reuse=reuse,
        **{key: value for key, value in options.items() if key in declared},
    )
    return request, name


WAYS = [
    ("llm", {}),
    ("slm", {}),
    ("lookup", {"num_drafts": 3}),
    *(("speculative", {"num_drafts": k}) for k in (1, 2, 4, "auto")),
    *(("entropy", {"threshold": ENTROPY, "llm_consecutive_tokens": n}) for n in (1, 2, 3)),
]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_no_more_is_left_than_was_read(how: tuple[str, Options]) -> None:
    """For every length at which a text may end: after an accepted draft, or what the LLM wrote."""
    ours, unread = pair(), set()
    for new in range(1, 13):
        for first in range(VOCAB):
            more = [[first, (first + new) % VOCAB]]
            turn = Turn(how, [0.0], more, new, 100, temperature=1.0, eos=False)
            request, name = asked(turn, [[]], reuse=False)
            (text,), _ = write(ours, request, 100, name)
            check_what_is_left(ours)
            unread.add(text.length - max(map(max, ours._left.read.tolist())))
    assert min(unread) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(turns(), min_size=2, max_size=5))
def test_a_conversation_with_reuse_is_the_one_without(conversation: list[Turn]) -> None:
    ours, texts = pair(), [[]] * (ROWS + 1)
    for turn in conversation:
        fresh, name = asked(turn, texts, reuse=False)
        _, expected = write(pair(), fresh, turn.cut, name)
        written, found = write(ours, asked(turn, texts, reuse=True)[0], turn.cut, name)
        if turn.how[1].get("verification") != "rejection" or turn.how[1]["num_drafts"] != "auto":
            assert found == expected  # how many drafts are verified depends on time
        check_what_is_left(ours)
        texts = [[*text.prompt, *new] for text, new in zip(written, found, strict=True)]
        texts += [[]] * (ROWS + 1 - len(texts))


def test_the_beginning_is_not_read_again() -> None:
    ours = pair()
    for name, unread in (("llm", 1), ("slm", 1), ("speculative", 2), ("lookup", 1)):
        turn = Turn((name, {"num_drafts": 3} if name in ("speculative", "lookup") else {}),
                    [1.0], [[1, 2]], 8, 100, 0.0, False)  # fmt: skip
        first, _ = write(ours, asked(turn, [[3, 4, 5]], reuse=False)[0], 100, name)
        text = [*first[0].prompt, *first[0].tokens]
        again, _ = write(ours, asked(turn, [text], reuse=True)[0], 100, name)
        assert len(text) - unread <= again[0].reused <= len(text) - 1
        changed = [*text[:6], (text[6] + 1) % VOCAB, *text[7:]]
        other, _ = write(ours, asked(turn, [changed], reuse=True)[0], 100, name)
        assert other[0].reused == 6


def test_a_call_that_fails_leaves_nothing() -> None:
    ours = pair()
    turn = Turn(("llm", {}), [1.0], [[1, 2]], 8, 100, 0.0, False)
    write(ours, asked(turn, [[3, 4, 5]], reuse=False)[0], 100, "llm")
    try:
        with ours.turn():
            assert ours.held.tokens
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with ours.turn():
        assert not ours.held.tokens


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_call_that_is_stopped_leaves_what_it_has_read(how: tuple[str, Options]) -> None:
    """At every length, with a second text beside the one that stops, and a third that waits."""
    for length in range(1, 12):
        ours, turn = pair(), Turn(how, [0.0] * 3, [[1, 2], [3, 4, 5], [2]], 12, 100, 1.0, False)
        request, name = asked(turn, [[]] * 3, reuse=False)
        strategy, texts = strategies()[name], list[Text]()

        def stop(text: Text, new: Any, length: int = length, texts: Any = texts) -> bool:
            texts.append(text)
            if text.index == 1 and len(text.tokens) >= length:
                raise Stopped
            return False

        with pytest.raises(Stopped), ours.turn():
            batch, program = strategy.prepare(ours, request)
            strategy.write(ours, batch, program, request, [stop])
        check_what_is_left(ours)
        text = texts[-1]
        assert set(ours._left.tokens) == {0, 1} and text.index == text.row == 1
        assert list(ours._left.tokens[1]) == [*text.prompt, *text.tokens]
        assert max(read[1] for read in ours._left.read.tolist()) >= text.length - 2


def test_a_wiped_cache_holds_nothing() -> None:
    ours = pair()
    turn = Turn(("llm", {}), [1.0], [[1, 2]], 8, 100, 0.0, False)
    write(ours, asked(turn, [[3, 4, 5]], reuse=False)[0], 100, "llm")
    ours.arena.caches[1][..., 9, :] = torch.nan
    with ours.turn():
        assert not ours.held.tokens


def test_tokens_that_two_texts_share() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
