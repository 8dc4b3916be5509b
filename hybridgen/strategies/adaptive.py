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

Where no drafts pay, the LLM goes on alone. To weigh takes time too: as long as no more is found
than there was then, it is done again after a rest, each longer than the one before. The SLM, which
reads nothing meanwhile, is asked again after a while, and after twice as long when that was in
vain; all such probes, with what the SLM has missed, may cost no more than that same share. Lookups
cost next to nothing: what is known of them is forgotten as they come up, until they are worth
another try.
"""

from collections.abc import Mapping, Sequence

from hybridgen.kernels.lookup import MAX_NGRAM
from hybridgen.strategies.estimates import ALONE, LOOKUP, MODEL, PRIOR, SURE, Arm, Costs, Survival

TIMED = 2  # rounds of drafts that the first text of a pair begins with
FORGET = 0.97  # of what is known of survival, a round
START, RISK = 1.5, 0.02  # rounds, and of the text, that drafts may lose: 3 % of 200 tokens
HORIZON = 8  # rounds over which it pays that the SLM has caught up
STAY = 0.2  # of a draft's time, what it is worth that the SLM keeps reading: coming back is dear
FIRST_WAIT, LONGEST_WAIT = 24, 256  # rounds between probes of the SLM
REST, LONGEST_REST = 2, 16  # rounds of the LLM alone before drafts are weighed again
LOOK = 4  # rounds of a rest for each that looks the text's end up
TIMING = 2  # rounds of the LLM in a row, of which the last is timed
FEW, STALE, PATIENT, MARGIN = 8, 64, 4, 0.3  # rounds, their factor and tokens, see `choose`
HOPE = 0.9  # survival that a probe hopes for


def looks_up(left: int) -> bool:
    """Whether a round of a rest looks up the end of the text, with ``left`` to come, it included.

    Every `LOOK`-th does, and the last, by whose finds the next round is chosen.
    """
    return left % LOOK == 1


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
        self._rest, self._resting = REST, 0  # how long the next rest is, and rounds to come of one
        self._declined = 0  # tokens found with which the LLM alone was chosen
        self._met = [0] * (MAX_NGRAM + 1)  # rounds of a rest, by how many tokens were found
        self._took: float | None = None  # by one of them
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
        self._count_rest()
        seconds, timed = self.costs.seconds, self.costs.timed
        if self._timing:
            return ALONE
        if timed(self._opener) < TIMED:
            return self._opener
        if timed(ALONE) < TIMED and seconds[ALONE] >= seconds[self._opener]:
            return ALONE
        chosen = self._weighed(found, catch_ups)
        if chosen == ALONE and not self._timing:
            self._declined, self._resting = max(found, default=0), self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        return chosen

    def rests(self, found: int) -> int:
        """For how many rounds, this one among them, the LLM goes on as was chosen last.

        Nothing is weighed meanwhile: a small model's round is too short to weigh after each what
        has hardly changed.

        found    see `choose`; the most of all rows, as far as was looked (see `looks_up`)
        """
        if found > self._declined:
            self._resting = 0
        if not self._resting:
            return 0
        self._resting -= 1
        self._met[found] += 1
        return self._resting + 1

    def rested(self, seconds: float | None) -> None:
        """A round of a rest took so long."""
        self._took = seconds

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
            self._timing, self._alone = max(self._timing - 1, 0), self._round
        else:
            self._rest, self._resting = REST, 0
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

    def _weighed(self, found: Sequence[int], catch_ups: int) -> Arm:
        """The arm whose round is worth most, see above, or a probe."""
        seconds, timed = self.costs.seconds, self.costs.timed
        alone = seconds[ALONE]
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
        return best

    def _count_rest(self) -> None:
        """Learn from the rounds of the last rest, which gave a token each."""
        rounds = sum(self._met)
        if not rounds:
            return
        self._round += rounds
        self._idle += rounds
        self._alone, self._written = self._round, self._written + rounds
        if self._took is not None:
            self.costs.took(ALONE, self._took)
            self._took = None
        kept = FORGET**rounds
        given = (1 - kept) / (1 - FORGET)
        self._tokens = kept * self._tokens + given
        self._seconds = kept * self._seconds + given * self.costs.seconds[ALONE]
        for level, count in enumerate(self._met):
            if level and count:
                self.survival[level].fade(FORGET**count)
            self._met[level] = 0

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
