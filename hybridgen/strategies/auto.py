"""``num_drafts="auto"``: each round drafts as many tokens as pay, by the SLM, a lookup, or none.

The choice is `adaptive.Chooser`'s, on the host; it decides how fast a text comes, and with coupled
verification nothing of the text. The SLM reads only where it drafts, the prompts too: a long one
the LLM continues by a token first, so that this comes as early as from the LLM alone. What it has
missed since it reads before it drafts again, up to 16 tokens a forward: how far it has come is kept
on the device, and how many forwards that takes at most on the host.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hybridgen.engine.limits import MAX_FEED
from hybridgen.engine.loop import Outcome, Program
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import integers, moved
from hybridgen.engine.steps import feed, prefill
from hybridgen.kernels.lookup import MAX_NGRAM, lookup
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.strategies.adaptive import Chooser, looks_up
from hybridgen.strategies.drafts import Proposer, speculative_round
from hybridgen.strategies.estimates import (
    ALONE,
    LOOKUP,
    LOOKUP_PRIOR,
    MODEL,
    MODEL_PRIOR,
    Arm,
    Costs,
    Survival,
)
from hybridgen.strategies.lookup import NgramDrafts
from hybridgen.strategies.single import single_round

MODEL_DRAFTS = (1, 2, 3, 4, 6, 8)
LOOKUP_DRAFTS = (3, 6, 10)
MOST_DRAFTS = max(MODEL_DRAFTS + LOOKUP_DRAFTS)
NGRAMS = NgramDrafts()
LONG = 64  # tokens of a prompt that take the SLM longer than a round may wait for


class Choice(NamedTuple):
    """A round that was enqueued: what was chosen, or asked for, and what was known then.

    found        by text, how many tokens of its end a lookup had found
    last         the texts that were furthest from their limits
    catch_ups    forwards in which the SLM read what it had missed
    drafted      rounds before it in which the SLM drafted
    prompts      how often the SLM had read prompts before
    """

    arm: Arm
    found: Mapping[int, int] = {}
    last: Collection[int] = ()
    catch_ups: int = 0
    drafted: int = 0
    prompts: int = 0


class Rest(NamedTuple):
    """A round of the LLM alone that was chosen unweighed, as the one before.

    prompts      see `Choice`
    looks        its report tells what a lookup finds
    """

    prompts: int
    looks: bool
    arm: Arm = ALONE


@dataclass(frozen=True, eq=False)
class Experience:
    """What is known of a batch from one call to the next."""

    costs: Costs
    survival: dict[int | str, Survival]

    @classmethod
    def of(cls, proposer: Proposer) -> "Experience":
        """Nothing yet, of what ``proposer`` drafts and of lookups."""
        arms = [ALONE, *(Arm(LOOKUP, drafts) for drafts in LOOKUP_DRAFTS)]
        if not isinstance(proposer, NgramDrafts):
            arms += [Arm(MODEL, drafts) for drafts in MODEL_DRAFTS]
        known: dict[int | str, Survival] = {MODEL: Survival(MODEL_PRIOR, MOST_DRAFTS)}
        for found in range(1, MAX_NGRAM + 1):
            known[found] = Survival(LOOKUP_PRIOR[found], MOST_DRAFTS)
        return cls(Costs(arms), known)


class Auto(Program):
    """Rounds that a `Chooser` chooses, each by the report of one before."""

    def __init__(
        self, batch: Batch, proposer: Proposer, with_q: bool, experience: Experience
    ) -> None:
        self.chooser = Chooser(experience.costs, experience.survival)
        self.reads_slm = proposer.reads_slm
        by = {MODEL: (proposer, with_q), LOOKUP: (NGRAMS, False)}
        self.rounds = {
            arm: batch.round(auto_round, arm.drafts, *by.get(arm.drafter, (None, False)))
            for arm in experience.costs.arms
        }
        self.catch_up = batch.round(catch_up_round) if self.reads_slm else None
        self.unread = batch.own(Unread)
        self.unread.prompts.clear()
        self.begun = False
        # A card's lookup takes no time that counts, and its next round is chosen without it.
        self.blind = batch.round(single_round, SOURCE_LLM) if batch.by_host else None
        self.found: Mapping[int, int] = {}
        self.last: Collection[int] = ()
        self.most_found = 0
        self.drafted = self.prompts = 0
        self.missed = -1  # the prompt's last token and one more it reads as it first drafts

    def enqueue(self) -> Choice | Rest:
        """Enqueue what pays most, and before that what the SLM needs for it."""
        left = self.chooser.rests(self.most_found)
        if left:
            return self._rest(left)
        found = [self.found[text] for text in self.last]
        needed = -(-self.missed // MAX_FEED)
        first, self.begun = not self.begun, True
        arm = ALONE if first and self.unread.is_long else self.chooser.choose(found, needed)
        by_slm = self.reads_slm and arm.drafter == MODEL
        choice = Choice(
            arm, self.found, self.last, needed if by_slm else 0, self.drafted, self.prompts
        )
        if by_slm and self.catch_up is not None:
            if self.unread.prompts:
                self.unread.read()
                self.prompts += 1
            for _ in range(needed):
                self.catch_up()
            self.missed, self.drafted = 0, self.drafted + 1
        elif self.reads_slm:
            self.missed += arm.drafts + 1  # at most
        self.rounds[arm]()
        return choice

    def _rest(self, left: int) -> Rest:
        """Enqueue a round of a rest that has so many left, this one among them."""
        self.missed += 1
        blind = None if looks_up(left) else self.blind
        (blind or self.rounds[ALONE])()
        return Rest(self.prompts, looks=blind is None)

    def reported(self, outcome: Outcome) -> None:
        """Learn from a round."""
        choice: Choice | Rest = outcome.name
        # The host may have been late for the round before as well.
        seconds = outcome.seconds if choice.prompts == self.prompts else None
        if isinstance(choice, Rest):
            if choice.looks:
                self._reach(outcome)
            self.chooser.rested(seconds)
            return
        self._reach(outcome)
        arm, most = choice.arm, max(outcome.gained, default=0)
        if self.reads_slm and arm.drafter != MODEL and choice.drafted == self.drafted:
            self.missed -= arm.drafts + 1 - most
        texts, gained = outcome.texts, outcome.gained
        waited_for = [n for text, n in zip(texts, gained, strict=True) if text in choice.last]
        counted = waited_for or gained
        progress = sum(counted) / max(len(counted), 1)
        found = [choice.found.get(text, 0) for text in texts]
        self.chooser.saw(arm, found, gained, progress, seconds, choice.catch_ups)

    def _reach(self, outcome: Outcome) -> None:
        self.found = dict(zip(outcome.texts, outcome.left, strict=True))
        to_come = outcome.to_come
        furthest = max(to_come, default=0)
        self.last = [text for text, n in zip(outcome.texts, to_come, strict=True) if n == furthest]
        self.most_found = max([self.found[text] for text in self.last], default=0)


def auto_round(batch: Batch, num_drafts: int, proposer: Proposer | None, with_q: bool) -> None:
    """A round with so many drafts; its report tells what a lookup finds after it."""
    rows = batch.rows
    if proposer is None:
        single_round(batch, SOURCE_LLM)
    else:
        speculative_round(batch, proposer, num_drafts, with_q)
        if proposer.reads_slm:
            batch.own(read_by_slm).copy_((rows.length - 2).clamp_min(0))
    rows.pending.copy_(lookup(rows.tokens, rows.length, batch.drafts(num_drafts, False).none))


def catch_up_round(batch: Batch) -> None:
    """The SLM reads the next of the tokens that it has missed; two it reads as it drafts."""
    rows, read = batch.rows, batch.own(read_by_slm)
    feed(rows, batch.slm, MAX_FEED, read)
    read.copy_((read + MAX_FEED).minimum(rows.length - 2).maximum(read))


def read_by_slm(batch: Batch) -> Tensor:
    """How many leading tokens of each row the SLM has read, int64 [B]."""
    return torch.zeros_like(batch.rows.length)


@dataclass(eq=False)
class Unread:
    """The prompts that the SLM has yet to read: of a row from which token to which."""

    batch: Batch
    prompts: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, prompts: Mapping[int, tuple[int, int]]) -> None:
        """Those of new texts."""
        self._has_read({row: start for row, (start, _) in prompts.items()})
        self.prompts |= prompts

    @property
    def is_long(self) -> bool:
        """Whether to read them takes long."""
        return any(length - start > LONG for start, length in self.prompts.values())

    def read(self) -> None:
        """Let the SLM read them."""
        rows, batch = [*self.prompts], self.batch
        starts, lengths = ([*of] for of in zip(*self.prompts.values(), strict=True))
        prefill(batch.rows, batch.slm, lengths, rows, starts)
        self._has_read(dict(zip(rows, lengths, strict=True)))
        self.prompts.clear()

    def _has_read(self, counts: Mapping[int, int]) -> None:
        table = moved(integers([[*counts], [*counts.values()]]), self.batch.rows.length.device)
        self.batch.own(read_by_slm).index_copy_(0, table[0], table[1])
