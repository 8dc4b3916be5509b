"""The training loop that both stages share: phases, a budget, a log, and restarts."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from hybridgen.pair import parallel
from hybridgen.pair.optim import Optimizer

Loss = Callable[[torch.Tensor], torch.Tensor]
Batches = Callable[[int, int, np.random.Generator], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Phase:
    """Windows of ``length`` tokens, ``rows`` a step over all processes, up to a progress."""

    until: float
    rows: int
    length: int


@dataclass(frozen=True)
class Budget:
    """A run ends after ``steps``, or after ``minutes`` when they are given."""

    steps: int
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Fraction of the budget used."""
        if self.minutes is not None:
            return min(1.0, seconds / (60.0 * self.minutes))
        return min(1.0, step / self.steps)


@dataclass
class Run:
    """What to train and how; ``folder`` receives the restart file of each process."""

    name: str
    model: Qwen3ForCausalLM
    loss: Loss
    batches: Batches
    phases: tuple[Phase, ...]
    budget: Budget
    folder: Path
    seed: int
    lr_scale: float = 1.0
    save_every: float = 540.0
    on_save: Callable[[], str] = lambda: ""


@dataclass
class Place:
    """How far a run is: what a restart file says beside the weights."""

    step: int = 0
    seconds: float = 0.0
    phase: int = -1  # which of the run's phases
    started: int = 0  # the step that the phase began with


def fit(run: Run, rank: int) -> int:
    """Train to the end of the budget, from the restart file if there is one; the step count."""
    optimizer = Optimizer(run.model, rank, run.lr_scale)
    place = _restore(run, optimizer, rank)
    saved = last = time.monotonic()
    stream: Iterator[np.ndarray] | None = None
    window: list[float] = []
    tokens = 0
    while (progress := parallel.mean(run.budget.progress(place.step, place.seconds))) < 1.0:
        index = next(i for i, phase in enumerate(run.phases) if progress < phase.until)
        if index != place.phase:
            place.phase, place.started, stream = index, place.step, None
        phase = run.phases[index]
        stream = stream or _stream(run, place, rank)
        loss = run.loss(torch.from_numpy(next(stream)))
        loss.backward()
        optimizer.step(progress)
        window.append(loss.item())
        tokens += phase.rows * phase.length
        place.step += 1
        now = time.monotonic()
        place.seconds += now - last
        last = now
        if rank == 0 and place.step % 50 == 0:
            print(
                f"{run.name} step {place.step} progress {progress:.3f} loss {np.mean(window):.4f} "
                f"length {phase.length} minutes {place.seconds / 60:.1f} "
                f"tokens/s {tokens / (now - saved):.0f}",
                flush=True,
            )
            window = []
        if parallel.mean(now - saved) > run.save_every:
            _save(run, optimizer, rank, place)
            saved, tokens = time.monotonic(), 0
    _save(run, optimizer, rank, place)
    return place.step


def _stream(run: Run, place: Place, rank: int) -> Iterator[np.ndarray]:
    """The phase's batches from where the run is: a restart reads on and repeats none."""
    phase = run.phases[place.phase]
    rng = np.random.default_rng([run.seed, rank, place.started])
    rows = max(1, phase.rows // parallel.world_size())
    return islice(run.batches(rows, phase.length, rng), place.step - place.started, None)


def _restart_file(run: Run, rank: int) -> Path:
    return run.folder / f"{run.name}.{rank}.pt"


def _save(run: Run, optimizer: Optimizer, rank: int, place: Place) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    path = _restart_file(run, rank)
    partial = path.with_suffix(".partial")
    state = asdict(place) | {"optimizer": optimizer.state(), "model": run.model.state_dict()}
    torch.save(state, partial)
    partial.replace(path)
    if rank == 0 and (note := run.on_save()):
        print(f"{run.name} step {place.step} minutes {place.seconds / 60:.1f} {note}", flush=True)


def _restore(run: Run, optimizer: Optimizer, rank: int) -> Place:
    path = _restart_file(run, rank)
    if not path.exists():
        return Place()
    state = torch.load(path, weights_only=True)
    run.model.load_state_dict(state["model"])
    optimizer.load(state["optimizer"])
    return Place(**{field.name: state[field.name] for field in fields(Place)})
