"""Which round comes next: how many tokens to draft, by whom, or none at all.

A round of an `Arm` gives g tokens in t seconds. The best policy earns tokens at some rate r, and it
takes in every state the arm with the largest g - r t (Howard 1960, "Dynamic programming and Markov
processes"; the state is how much of the text's end a lookup has found). All three are estimated as
the text is written:

g    from how many drafts were accepted. A draft survives with some probability where those before
     it did; hits and trials are kept position by position, and forgotten exponentially.
t    the median of the last rounds of an arm; of an arm that is not tried yet, from its neighbours,
     on a line in the number of drafts.
r    tokens and seconds of the last rounds.

Where no drafts pay, the LLM goes on alone. The SLM, which reads nothing meanwhile, is asked again
after a while, and after twice as long when that was in vain; what such a probe may cost, with what
the SLM has missed, is bounded by a share of the time since. Lookups cost next to nothing: what is
known of them is forgotten, until they are worth another try.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from statistics import median
from typing import NamedTuple

LLM, MODEL, LOOKUP = "llm", "model", "lookup"
REMEMBERED = 9  # rounds of an arm whose median is its time
TIMED = 2  # rounds of the LLM alone, and of drafts, that the first texts begin with
SURE = 3  # rounds after which a median stands by itself
FORGET = 0.96  # of what is known of survival, a round
PRIOR = 3.0  # trials that the prior is worth
MODEL_PRIOR = 0.6
LOOKUP_PRIOR = (0.0, 0.4, 0.5, 0.6, 0.8)  # by how many tokens were found
STEP = {MODEL: 0.2, LOOKUP: 0.02}  # of an LLM round, a draft's time where nothing is known yet
HORIZON = 8  # rounds over which it pays that the SLM has caught up
FIRST_WAIT, LONGEST_WAIT = 24, 256  # rounds between probes of the SLM
PROBE_SHARE = 0.02  # of the time since the last one, at most what a probe costs
STAY = 0.01  # tokens a round that it is worth if the SLM keeps reading
STALE, MARGIN = 64, 0.3  # rounds and tokens, see `choose`
HOPE = 0.9  # survival that a probe hopes for


class Arm(NamedTuple):
    """``drafts`` tokens by ``drafter``: MODEL, LOOKUP, or LLM for none at all."""

    drafter: str
    drafts: int


ALONE = Arm(LLM, 0)
drafts_of = attrgetter("drafts")


class Survival:
    """How likely a draft is accepted where those before it were, from what has been."""

    def __init__(self, prior: float, most: int) -> None:
        self.prior = prior
        self.hits, self.trials = [0.0] * most, [0.0] * most
        self.gains = self._expected()

    def saw(self, accepted: int, drafts: int) -> None:
        """So many of so many drafts were accepted."""
        for i in range(min(accepted + 1, drafts)):
            self.trials[i] += 1
        for i in range(accepted):
            self.hits[i] += 1
        self.gains = self._expected()

    def fade(self, share: float) -> None:
        """Keep this share of the weight of what was seen."""
        self.hits = [hits * share for hits in self.hits]
        self.trials = [trials * share for trials in self.trials]
        self.gains = self._expected()

    def weaken(self, most: float) -> None:
        """Let what was seen weigh no more than ``most`` trials of the first draft."""
        if self.trials[0] > most:
            self.fade(most / self.trials[0])

    def _expected(self) -> list[float]:
        """Tokens of a round with 0, 1, 2, ... drafts, the LLM's own among them."""
        pooled = (sum(self.hits) + PRIOR * self.prior) / (sum(self.trials) + PRIOR)
        gains, alive = [1.0], 1.0
        for hits, trials in zip(self.hits, self.trials, strict=True):
            alive *= (hits + PRIOR * pooled) / (trials + PRIOR)
            gains.append(gains[-1] + alive)
        return gains


class Costs:
    """Seconds of a round, by arm, and of a forward in which the SLM catches up.

    Of one batch; what has not been measured is guessed from what has.
    """

    def __init__(self, arms: Iterable[Arm]) -> None:
        self.arms = tuple(arms)
        self._seen: dict[Arm, deque[float]] = {}
        self._caught_up: deque[float] = deque(maxlen=REMEMBERED)
        self.seconds: dict[Arm, float] = {}
        chains = [[ALONE, *(arm for arm in self.arms if arm.drafter == name)] for name in STEP]
        self._pairs = [pair for chain in chains for pair in pairwise(sorted(chain, key=drafts_of))]
        self._settle()

    def timed(self, arm: Arm) -> int:
        """How many of the last rounds of this arm have been timed."""
        return len(self._seen.get(arm, ()))

    def took(self, arm: Arm, seconds: float, catch_ups: int = 0) -> None:
        """A round took so long, with so many forwards before it in which the SLM caught up."""
        if catch_ups:
            self._caught_up.append(max(seconds - self.seconds[arm], 0.0) / catch_ups)
        else:
            self._seen.setdefault(arm, deque(maxlen=REMEMBERED)).append(seconds)
        self._settle()

    def _settle(self) -> None:
        known = {
            arm: median(seen) if len(seen) >= SURE else min(seen)
            for arm, seen in self._seen.items()
        }
        slopes = {LLM: 0.0, **{drafter: self._slope(drafter, known) for drafter in STEP}}
        if ALONE not in known:
            known[ALONE] = min(
                (t / (1 + STEP[arm.drafter] * arm.drafts) for arm, t in known.items()), default=1.0
            )
        for arm in self.arms:
            seen = self._seen.get(arm, ())
            guess = _beside(arm, known, slopes[arm.drafter]) if len(seen) < SURE else known[arm]
            self.seconds[arm] = min(known.get(arm, guess), guess)
        # Fewer drafts never take longer: what says so was a slow moment.
        for shorter, longer in reversed(self._pairs):
            self.seconds[shorter] = min(self.seconds[shorter], self.seconds[longer])
        self.catch_up = median(self._caught_up) if self._caught_up else slopes[MODEL]

    def _slope(self, drafter: str, known: Mapping[Arm, float]) -> float:
        """Seconds of one more draft."""
        alone = known.get(ALONE)
        if alone is None:
            return STEP[drafter] * min(known.values(), default=1.0)
        steps = [(t - alone) / arm.drafts for arm, t in known.items() if arm.drafter == drafter]
        return max(median(steps), 0.0) if steps else STEP[drafter] * alone


def _beside(arm: Arm, known: Mapping[Arm, float], slope: float) -> float:
    """The time of an arm by its nearest neighbour's."""
    kin = [other for other in known if other.drafter in (arm.drafter, LLM) and other != arm]
    if not kin:
        return known[arm]
    near = min(kin, key=lambda other: abs(other.drafts - arm.drafts))
    return known[near] + slope * (arm.drafts - near.drafts)


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
        self._opening = [*self._model[1:2], ALONE]
        self._tokens = self._seconds = 0.0  # of the last rounds
        self._idle, self._idle_seconds, self._wait = 0, 0.0, FIRST_WAIT
        self._alone = 0  # the round that was last the LLM's alone
        self._round, self._looked = 0, dict.fromkeys(survival, 0)

    def choose(self, found: int, catch_ups: int) -> Arm:
        """The next arm.

        found        tokens of the text's end that stood before, where a lookup can go on
        catch_ups    forwards that the SLM needs before it can draft

        The LLM alone is timed anew where that was STALE rounds ago and drafts gain less than MARGIN
        tokens: if the machine was slow then, drafts have looked cheap ever since.
        """
        for arm in self._opening:
            if self.costs.timed(arm) < TIMED:
                return arm
        rate = self._rate()
        alone = 1.0 - rate * self.costs.seconds[ALONE]
        best, most = ALONE, alone
        if found:
            best, most = self._better(self._lookup, self._lookups(found), rate, best, most)
        if self._model:
            owed = rate * self.costs.catch_up * catch_ups
            chosen, value = self._better(
                self._model, self.survival[MODEL].gains, rate, best, most + owed / HORIZON - STAY
            )
            if chosen is not best:
                self._wait = FIRST_WAIT
                stale = self._round - self._alone > STALE
                return ALONE if stale and value - alone < MARGIN else chosen
            if self._idle >= self._wait and self._may_pay(rate, most, catch_ups):
                self._wait = min(2 * self._wait, LONGEST_WAIT)
                self.survival[MODEL].weaken(1.0)
                return self._model[0]
        return best

    def saw(
        self,
        arm: Arm,
        found: int,
        gained: Sequence[int],
        seconds: float | None = None,
        catch_ups: int = 0,
    ) -> None:
        """A round of ``arm``, chosen with ``found``, gave each row so many tokens.

        seconds    that it took, with its ``catch_ups``; None where that is not known
        """
        self._round += 1
        if seconds is not None:
            self.costs.took(arm, seconds, catch_ups)
        took = self.costs.seconds[arm]
        if gained:
            self._tokens = FORGET * self._tokens + sum(gained) / len(gained)
            self._seconds = FORGET * self._seconds + took
        if arm == ALONE:
            self._alone = self._round
        if arm.drafter == MODEL:
            self._idle, self._idle_seconds = 0, 0.0
            self.survival[MODEL].fade(FORGET)
        else:
            self._idle, self._idle_seconds = self._idle + 1, self._idle_seconds + took
        if arm.drafts:
            seen = self.survival[MODEL if arm.drafter == MODEL else found]
            for tokens in gained:
                if tokens:
                    seen.saw(tokens - 1, arm.drafts)

    def _better(
        self, arms: Sequence[Arm], gains: Sequence[float], rate: float, best: Arm, most: float
    ) -> tuple[Arm, float]:
        """The best of ``arms`` and of what is best so far."""
        seconds = self.costs.seconds
        for arm in arms:
            worth = gains[arm.drafts] - rate * seconds[arm]
            if worth > most:
                best, most = arm, worth
        return best, most

    def _lookups(self, found: int) -> Sequence[float]:
        """What a lookup is expected to give: what is known of it is forgotten meanwhile."""
        known = self.survival[found]
        rounds = self._round - self._looked[found]
        if rounds:
            known.fade(FORGET**rounds)
            self._looked[found] = self._round
        return known.gains

    def _rate(self) -> float:
        """Tokens a second and row; as it begins, those of the best arm without lookups."""
        if not self._seconds:
            gains, seconds = (
                self.survival[MODEL].gains if self._model else [1.0],
                self.costs.seconds,
            )
            arms = [ALONE, *self._model]
            self._seconds = 4 * seconds[ALONE]
            self._tokens = self._seconds * max(gains[arm.drafts] / seconds[arm] for arm in arms)
        return self._tokens / self._seconds

    def _may_pay(self, rate: float, most: float, catch_ups: int) -> bool:
        """Whether a probe of the SLM is cheap enough, and could change anything."""
        seconds, probe = self.costs.seconds, self._model[0]
        cost = seconds[probe] - seconds[ALONE] + catch_ups * self.costs.catch_up
        if cost > PROBE_SHARE * self._idle_seconds:
            return False
        return any(
            (1 - HOPE ** (arm.drafts + 1)) / (1 - HOPE) - rate * seconds[arm] > most
            for arm in self._model
        )
