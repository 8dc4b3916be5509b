"""What is known of the rounds a strategy may choose from: how long each takes, what it may give.

Both are estimated as text is written, on the host, and `adaptive` chooses by them.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

LLM, MODEL, LOOKUP = "llm", "model", "lookup"
REMEMBERED = 25  # rounds of an arm whose median is its time: times vary by a draft's own
SURE = 3  # rounds after which a median stands by itself
NOTICED = 0.01  # by what share a median must move for the estimates to follow it
LARGEST_UNIT = 1e9  # numbers in units are kept below what they would overflow at, by far
PRIOR = 3.0  # trials that the prior is worth, and all that is known from another text or of old
MODEL_PRIOR = 0.6
LOOKUP_PRIOR = (0.0, 0.4, 0.5, 0.6, 0.8)  # by how many tokens were found
STEP = {MODEL: 0.2, LOOKUP: 0.02}  # of an LLM round, a draft's time where nothing is known yet


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
