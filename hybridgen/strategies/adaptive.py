"""Which round comes next: how many tokens to draft, by whom, or none at all.

A round of an `Arm` gives g tokens in t seconds. The best policy earns tokens at some rate r, and it
takes in every state the arm with the largest g - r t (Howard 1960, "Dynamic programming and Markov
processes"; the state is how much of the text's end a lookup has found). All three are estimated as
the text is written:

g    from how many drafts were accepted. A draft survives with some probability where those before
     it did; hits and trials are kept position by position, and forgotten exponentially.
t    the median of the last rounds of an arm; of an arm that is hardly tried yet, from a line
     t(K) = a + b K through those of the same drafter.
r    tokens and seconds of the last rounds.

What drafts may lose is bounded, whatever the estimates say: a ledger holds how much longer the text
has taken than the LLM alone would have taken for the same tokens. Drafts are tried where, were all
of them rejected, that would still be less than START rounds and RISK of the text (Wu et al. 2016,
"Conservative bandits").

Texts that are written side by side end when the last of them does. What a round is worth is what it
gives the rows that are furthest from their limits; what it tells of survival, all of them tell.

Where no drafts pay, the LLM goes on alone. The SLM, which reads nothing meanwhile, is asked again
after a while, and after twice as long when that was in vain; all such probes, with what the SLM has
missed, may cost no more than that same share. Lookups cost next to nothing: what is known of them
is forgotten as they come up, until they are worth another try.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

LLM, MODEL, LOOKUP = "llm", "model", "lookup"
REMEMBERED = 25  # rounds of an arm whose median is its time: times vary by a draft's own
TIMED = 2  # rounds of drafts that the first text of a pair begins with
SURE = 3  # rounds after which a median stands by itself
NOTICED = 0.01  # by what share a median must move for the estimates to follow it
FORGET = 0.97  # of what is known of survival, a round
LARGEST_UNIT = 1e9  # numbers in units are kept below what they would overflow at, by far
PRIOR = 3.0  # trials that the prior is worth, and all that is known from another text or of old
MODEL_PRIOR = 0.6
LOOKUP_PRIOR = (0.0, 0.4, 0.5, 0.6, 0.8)  # by how many tokens were found
STEP = {MODEL: 0.2, LOOKUP: 0.02}  # of an LLM round, a draft's time where nothing is known yet
START, RISK = 1.5, 0.02  # rounds, and of the text, that drafts may lose: 3 % of 200 tokens
HORIZON = 8  # rounds over which it pays that the SLM has caught up
STAY = 0.2  # of a draft's time, what it is worth that the SLM keeps reading: coming back is dear
FIRST_WAIT, LONGEST_WAIT = 24, 256  # rounds between probes of the SLM
PAUSE = 3  # rounds of the LLM alone after which it is weighed again whether the SLM pays
TIMING = 2  # rounds of the LLM in a row, of which the last is timed
FEW, STALE, PATIENT, MARGIN = 8, 64, 4, 0.3  # rounds, their factor and tokens, see `choose`
HOPE = 0.9  # survival that a probe hopes for


class Arm(NamedTuple):
    """``drafts`` tokens by ``drafter``: MODEL, LOOKUP, or LLM for none at all."""

    drafter: str
    drafts: int


ALONE = Arm(LLM, 0)


class Survival:
    """How likely a draft is accepted where those before it were, from what has been.

    Hits and trials are kept in units that grow, so that to forget is one division.
    """

    def __init__(self, prior: float, most: int) -> None:
        self.prior = prior
        self.hits, self.trials = [0.0] * most, [0.0] * most
        self._unit = 1.0
        self._gains: list[float] | None = None

    def saw(self, accepted: int, drafts: int) -> None:
        """So many of so many drafts were accepted."""
        for i in range(min(accepted + 1, drafts)):
            self.trials[i] += self._unit
        for i in range(accepted):
            self.hits[i] += self._unit
        self._gains = None

    def fade(self, share: float) -> None:
        """Keep this share of the weight of what was seen."""
        self._unit /= share
        self._gains = None
        if self._unit > LARGEST_UNIT:
            self.hits = [hits / self._unit for hits in self.hits]
            self.trials = [trials / self._unit for trials in self.trials]
            self._unit = 1.0

    def weaken(self, most: float) -> None:
        """Let what was seen weigh no more than ``most`` trials of the first draft."""
        if self.trials[0] > most * self._unit:
            self.fade(most * self._unit / self.trials[0])

    @property
    def gains(self) -> list[float]:
        """Tokens of a round with 0, 1, 2, ... drafts, the LLM's own among them."""
        if self._gains is not None:
            return self._gains
        prior = PRIOR * self._unit
        pooled = (sum(self.hits) + prior * self.prior) / (sum(self.trials) + prior)
        gains, alive = [1.0], 1.0
        for hits, trials in zip(self.hits, self.trials, strict=True):
            alive *= (hits + prior * pooled) / (trials + prior)
            gains.append(gains[-1] + alive)
        self._gains = gains
        return gains


class Recent:
    """The last `REMEMBERED` of some numbers, and their median without sorting them anew."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._last)

    def add(self, number: float) -> None:
        """Forget the first where there are too many."""
        if len(self._last) == REMEMBERED:
            del self._ordered[bisect_left(self._ordered, self._last.popleft())]
        self._last.append(number)
        insort(self._ordered, number)

    @property
    def typical(self) -> float:
        """The median; of fewer than `SURE` the least."""
        ordered, count = self._ordered, len(self._ordered)
        if count < SURE:
            return ordered[0]
        half = count // 2
        return ordered[half] if count % 2 else (ordered[half - 1] + ordered[half]) / 2


class Costs:
    """Seconds of a round, by arm, and of a forward in which the SLM catches up.

    Of one batch. A drafter's arms lie on a line in the number of drafts, from the LLM alone on; an
    arm leaves it as far as its own rounds say so.
    """

    def __init__(self, arms: Iterable[Arm]) -> None:
        self.arms = tuple(arms)
        self.seconds = dict.fromkeys(self.arms, 1.0)
        self._chains = {name: [arm for arm in self.arms if arm.drafter == name] for name in STEP}
        self._seen: dict[Arm, Recent] = {}
        self._typical: dict[Arm, float] = {}
        self._counted: dict[Arm, int] = {}  # how many rounds that is of
        self._caught_up: deque[float] = deque(maxlen=REMEMBERED)
        self._settle()

    def timed(self, arm: Arm) -> int:
        """How many of the last rounds of this arm have been timed."""
        return len(self._seen.get(arm, ()))

    def took(self, arm: Arm, seconds: float, catch_ups: int = 0) -> None:
        """A round took so long, with so many forwards before it in which the SLM caught up."""
        if catch_ups:
            self._caught_up.append(max(seconds - self.seconds[arm], 0.0) / catch_ups)
            self._settle()
            return
        seen = self._seen.setdefault(arm, Recent())
        seen.add(seconds)
        count, typical, known = len(seen), seen.typical, self._typical.get(arm, 0.0)
        # Between two rounds of a small model there is no time to weigh what has hardly changed.
        if abs(typical - known) > NOTICED * known or count > 1.5 * self._counted[arm]:
            self._typical[arm], self._counted[arm] = typical, count
            self._settle()

    def _settle(self) -> None:
        typical, means = self._typical, {}
        alone = typical.get(ALONE, math.inf)
        for drafter, arms in self._chains.items():
            weight = drafts = seconds = 0.0
            for arm in arms:
                if arm in typical:
                    n = self._counted[arm] - 1  # a single round may have been a slow one
                    weight += n
                    drafts += n * arm.drafts
                    seconds += n * typical[arm]
            if weight:
                means[drafter] = drafts / weight, seconds / weight
                # Drafts never save time: what says so was a slow moment of the LLM.
                alone = min(alone, seconds / weight)
        if alone == math.inf:
            alone = min(typical.values(), default=1.0)
        self.seconds[ALONE] = alone
        for drafter, arms in self._chains.items():
            drafts, seconds = means.get(drafter, (1.0, (1 + STEP[drafter]) * alone))
            step = (seconds - alone) / drafts
            for arm in arms:
                line, n = alone + step * arm.drafts, self.timed(arm)
                own = typical.get(arm, line)
                self.seconds[arm] = own if n >= SURE else min(own, line)
            if drafter == MODEL:
                self.catch_up = median([step, step, *self._caught_up])


class Chooser:
    """Chooses the arm of each round of one call, and learns from what came of it.

    costs       of the batch
    survival    by MODEL, and for lookups by how many tokens were found; both outlive the call
    """

    def __init__(self, costs: Costs, survival: Mapping[int | str, Survival]) -> None:
        self.costs, self.survival = costs, survival
        for known in survival.values():
            known.weaken(PRIOR)  # it was of another text
        self._model = [arm for arm in costs.arms if arm.drafter == MODEL]
        self._lookup = [arm for arm in costs.arms if arm.drafter == LOOKUP]
        self._opener = self._model[1] if self._model else ALONE
        self._tokens = self._seconds = 0.0  # of the last rounds
        self._written = 0.0
        self._lost = self._probed = 0.0  # rounds of the LLM that drafts, and probes, have cost
        self._idle, self._wait = 0, FIRST_WAIT
        self._round = self._alone = 0  # this round, and the last that the LLM alone was timed in
        self._timing = int(costs.timed(ALONE) < SURE)  # rounds of it to come
        self._paused = 0  # rounds to come of the LLM alone
        self._last: Arm | None = None

    def choose(self, found: Sequence[int], catch_ups: int) -> Arm:
        """The next arm.

        found        of each row that the others will wait for, tokens of the text's end that stood
                     before: there a lookup can go on
        catch_ups    forwards that the SLM needs before it can draft

        The LLM alone is timed anew where that was STALE rounds ago, or hardly ever, or seems to
        take longer than with drafts: if the machine was slow then, drafts have looked cheap ever
        since. Where they gain more than MARGIN tokens, that is not done as often.
        """
        seconds, timed = self.costs.seconds, self.costs.timed
        if self._timing or self.pauses(found):
            return ALONE
        if timed(self._opener) < TIMED:
            return self._opener
        alone = seconds[ALONE]
        if timed(ALONE) < TIMED and alone >= seconds[self._opener]:
            return ALONE
        rate, left = self._rate(), (1 + START + RISK * self._written - self._lost) * alone
        base = 1.0 - rate * alone
        best, most = ALONE, base
        if any(found):
            gains = self._lookup_gains(found)
            best, most = self._better(self._lookup, gains, rate, left, best, most)
        if not self._model:
            return best
        owed = self.costs.catch_up * catch_ups
        leave = owed / HORIZON - STAY * (seconds[self._model[0]] - alone)
        chosen, value = self._better(
            self._model, self.survival[MODEL].gains, rate, left - owed, best, most + rate * leave
        )
        if chosen is not best:
            self._wait = FIRST_WAIT
            doubtful = timed(ALONE) < SURE or seconds[chosen] < alone
            patience = FEW if doubtful else STALE
            if value - base >= MARGIN:
                patience *= PATIENT
            if self._round - self._alone <= patience:
                return chosen
            self._timing = TIMING
            return ALONE
        if self._idle >= self._wait and self._may_pay(rate, left, most, owed):
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            self._probed += (seconds[self._model[0]] + owed) / alone - 1
            self.survival[MODEL].weaken(PRIOR)
            return self._model[0]
        if best == ALONE:
            self._paused = PAUSE
        return best

    def pauses(self, found: Sequence[int]) -> bool:
        """Whether the LLM goes on alone, as was chosen last, and nothing is found."""
        return self._paused > 0 and not any(found)

    def saw(
        self,
        arm: Arm,
        found: Sequence[int],
        gained: Sequence[int],
        progress: float,
        seconds: float | None = None,
        catch_ups: int = 0,
    ) -> None:
        """A round of ``arm``, chosen with ``found`` of each row, gave each so many tokens.

        progress   how many tokens nearer it brought the end of all texts
        seconds    that it took, with its ``catch_ups``; None where that is not known
        """
        self._round += 1
        # A round of the LLM after another kind of round is slower than one of many.
        timed = arm != ALONE or self._last == ALONE or not self.costs.timed(ALONE)
        if seconds is not None and timed:
            self.costs.took(arm, seconds, catch_ups)
        if gained:
            took = self.costs.seconds[arm]
            self._tokens = FORGET * self._tokens + progress
            self._seconds = FORGET * self._seconds + took
            self._written += progress
            took += catch_ups * self.costs.catch_up
            self._lost += took / self.costs.seconds[ALONE] - progress
        if arm == ALONE:
            self._timing, self._paused = max(self._timing - 1, 0), max(self._paused - 1, 0)
            self._alone = self._round
        self._last = arm
        for level in set(found):
            if level:
                self.survival[level].fade(FORGET ** (found.count(level) / len(found)))
        if arm.drafter == MODEL:
            self._idle = 0
            self.survival[MODEL].fade(FORGET)
        else:
            self._idle += 1
        if arm.drafts:
            for tokens, level in zip(gained, found, strict=True):
                known = self.survival.get(MODEL if arm.drafter == MODEL else level)
                if tokens and known is not None:
                    known.saw(tokens - 1, arm.drafts)

    def _lookup_gains(self, found: Sequence[int]) -> list[float]:
        """Tokens of a round with 0, 1, 2, ... looked up drafts, in the mean of the rows."""
        levels = [self.survival[level].gains for level in found if level]
        nothing = len(found) - len(levels)
        return [(nothing + sum(gains)) / len(found) for gains in zip(*levels, strict=True)]

    def _better(
        self,
        arms: Sequence[Arm],
        gains: Sequence[float],
        rate: float,
        left: float,
        best: Arm,
        most: float,
    ) -> tuple[Arm, float]:
        """The best of ``arms``, none of more than ``left`` seconds, and of what is best so far."""
        for arm in arms:
            seconds = self.costs.seconds[arm]
            worth = gains[arm.drafts] - rate * seconds
            if worth > most and seconds <= left:
                best, most = arm, worth
        return best, most

    def _rate(self) -> float:
        """Tokens a second and row; as it begins, those of the best arm without lookups."""
        if not self._seconds:
            seconds = self.costs.seconds
            gains = self.survival[MODEL].gains if self._model else [1.0]
            arms = [ALONE, *self._model]
            self._seconds = 4 * seconds[ALONE]
            self._tokens = self._seconds * max(gains[arm.drafts] / seconds[arm] for arm in arms)
        return self._tokens / self._seconds

    def _may_pay(self, rate: float, left: float, most: float, owed: float) -> bool:
        """Whether a probe of the SLM is cheap enough, and could change anything."""
        seconds = self.costs.seconds
        probe = seconds[self._model[0]] + owed
        probed = self._probed + probe / seconds[ALONE] - 1
        if probe > left or probed > START + RISK * self._written:
            return False
        return any(
            (1 - HOPE ** (arm.drafts + 1)) / (1 - HOPE) - rate * seconds[arm] > most
            for arm in self._model
        )
