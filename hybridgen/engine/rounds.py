"""Rounds by name, and the batch that they run on.

A round is a function of a `Batch` and of static arguments, which are part of its name. All that
differs between requests or steps is a tensor, so what a round does to a batch is captured once on a
GPU (`hybridgen.engine.graphs`) and replayed: `Batch.round` is where that is kept. On a CPU the same
call runs the function.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

from torch import Tensor

from hybridgen.engine.kept import Kept
from hybridgen.engine.model import Model
from hybridgen.engine.reports import Immediate, Reports
from hybridgen.engine.state import Drafts, Hook, Routing, Rows
from hybridgen.kernels.launch import is_wanted

Owned = TypeVar("Owned")


@dataclass(frozen=True, init=False)
class Round:
    """``function(batch, *static)``, and by that a name: equal rounds do equal work.

    function    decides nothing on the host, and allocates nothing that grows with the context
    static      what cannot change without another round: counts, streams, flags, a proposer
    """

    function: Callable[..., None]
    static: tuple[Hashable, ...]

    def __init__(self, function: Callable[..., None], *static: Hashable) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "static", static)


@dataclass(frozen=True, eq=False)
class Batch:
    """A pair as the rounds of B rows see it: the models, and the state of the first B rows.

    reports    how the host reads what the rounds wrote
    capture    makes of a round what is to be called in its place: its captured graph
    """

    small: Model | None
    llm: Model
    rows: Rows
    most_drafts: Drafts
    routing: Routing
    reports: Reports = field(default_factory=Immediate)
    capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None
    _drafts: dict[tuple[int, bool], Drafts] = field(default_factory=dict)
    _rounds: dict[tuple[Round, bool | None], Callable[[], None]] = field(default_factory=dict)
    _owned: dict[Callable[..., Any], Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """B."""
        return self.rows.length.shape[0]

    @property
    def by_host(self) -> bool:
        """Whether rounds run where the host sees all of it: on a CPU, and none is captured."""
        return self.rows.tokens.is_cpu and self.capture is None

    @property
    def slm(self) -> Model:
        """The small model, which a round that asks it must have."""
        assert self.small is not None, "the pair has no SLM"
        return self.small

    def drafts(self, count: int, with_q: bool) -> Drafts:
        """The first ``count`` drafts; ``with_q`` where verification asks for their distributions.

        The count may change from round to round.
        """
        key = count, with_q
        if key not in self._drafts:
            self._drafts[key] = self.most_drafts.take(count, with_q, bool(self.rows.hooks))
        return self._drafts[key]

    def round(self, function: Callable[..., None], *static: Hashable) -> Callable[[], None]:
        """The round of this name on this batch, ready to be called; the same one every time.

        It is captured when it is asked for first, with every row at rest: before texts are loaded;
        and anew where its kernels are to be launched otherwise (`programmatic_dependent_launch`).
        """
        name = Round(function, *static), is_wanted()
        if name not in self._rounds:
            work = partial(function, self, *static)
            if self.capture is not None:
                self.rows.rest()
                self._rounds[name] = self.capture(work)
            else:
                self._rounds[name] = work
        return self._rounds[name]

    def own(self, allocate: Callable[["Batch"], Owned]) -> Owned:
        """What ``allocate(self)`` made the first time: tensors of a strategy or proposer."""
        if allocate not in self._owned:
            self._owned[allocate] = allocate(self)
        return cast(Owned, self._owned[allocate])

    def hooked(self, hook: Hook, captured: bool = True) -> "Batch":
        """This batch with rounds in which ``hook`` sees all logits, after those that see them now.

        captured    whether it works on the device alone
        """
        rows = replace(self.rows, hooks=(*self.rows.hooks, hook))
        capture = self.capture if captured else None
        return replace(self, rows=rows, capture=capture, _drafts={}, _rounds={}, _owned={})

    def recording(self, drafts: Tensor) -> "Batch":
        """This batch with rounds that also keep their drafts, in a buffer as `Kept` has it."""
        rows = replace(self.rows, kept=Kept(drafts, self.by_host))
        return replace(self, rows=rows, _rounds={})
