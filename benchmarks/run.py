"""Run experiments: open the pair and its contenders, measure, write each line as it comes."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from time import monotonic
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from hybridgen.benchmarks import lines, ours
from hybridgen.benchmarks.bandwidth import read_bandwidth
from hybridgen.benchmarks.conditions import surroundings
from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.judge import Judge
from hybridgen.benchmarks.lines import Line
from hybridgen.benchmarks.measure import Measured, measure
from hybridgen.benchmarks.pairs import find
from hybridgen.benchmarks.peers import apart
from hybridgen.benchmarks.peers.base import CannotRun, LLMWriter, conversions
from hybridgen.benchmarks.peers.table import ON_TORCH, peer
from hybridgen.benchmarks.prompts import load
from hybridgen.benchmarks.suites import Experiment
from hybridgen.engine.loading import load_model


@dataclass(frozen=True)
class Run:
    """What holds for all experiments of a command.

    command  as it was given, for the lines
    scratch  folder of built pairs and converted checkpoints
    prompts  a set or a file, in place of the pair's own
    slm, llm  the user's own models, in place of the experiments' pairs
    pick     tells by its name whether a contender is wanted
    until    monotonic seconds after which no further experiment begins, nor another repeat
    """

    suite: str
    command: str
    place: Place
    out: Path
    scratch: Path
    prompts: str | None = None
    slm: str | None = None
    llm: str | None = None
    pick: Callable[[str], bool] = lambda name: True
    until: float = float("inf")


def run_all(run: Run, experiments: Sequence[Experiment]) -> list[Line]:
    """The lines of all; those that the file has already are not measured again."""
    disable_progress_bar()
    bandwidth = read_bandwidth(torch.device(run.place.device))
    found: list[Line] = []
    for name in dict.fromkeys(each.pair for each in experiments):
        pair = find(name, run.scratch, slm=run.slm, llm=run.llm, device=run.place.device)
        opened = Opened(run, pair, [each for each in experiments if each.pair == name])
        try:
            for experiment in opened.experiments:
                found += opened.measured(experiment, bandwidth)
        finally:
            opened.close()
    return found


class Opened:
    """One pair for its experiments: our generator, the judge, and peers, opened when asked for."""

    def __init__(self, run: Run, pair: Pair, experiments: Sequence[Experiment]) -> None:
        self.run, self.pair, self.experiments = run, pair, experiments
        self.most = max(each.batch for each in experiments)
        self.generator = ours.open_generator(pair, run.place, self.most)
        sources = {"llm": (pair.llm, self.generator.llm)}
        if pair.slm is not None and self.generator.slm is not None:
            sources["slm"] = (pair.slm, self.generator.slm)
        # A peer computes everything in what we may compute prompts alone in: it has no other way to
        # read bfloat16 weights. The coarser of the two is also what a text has to be judged by.
        dtypes = {
            name: getattr(model, "prompt_dtype", model.dtype)
            for name, (_, model) in sources.items()
        }
        self.dtypes = {name: str(each).removeprefix("torch.") for name, each in dtypes.items()}
        self.place = run.place._replace(dtype=self.dtypes["llm"], slm_dtype=self.dtypes.get("slm"))
        self.judge = Judge(
            {
                name: load_model(source, "checkpoint", model.device, dtypes[name])
                for name, (source, model) in sources.items()
            }
        )
        self.peers: dict[str, list[Contender]] = {}

    def measured(self, experiment: Experiment, bandwidth: float) -> list[Line]:
        """The lines of an experiment, which are in the file then."""
        run, setting = self.run, self.setting(experiment)
        title = f"{self.pair.name}, {setting['prompts']}, {said(experiment)}"
        wanted = self.contenders(experiment)
        standing = [line for line in lines.held(run.out) if self._is_of(line, setting)]
        missing = {each.name for each in wanted} - {line.contender for line in standing}
        if not missing:
            say(f"{title}: in {run.out} already")
            return standing
        if monotonic() > run.until:
            say(f"{title}: no time left for it")
            return []
        say(f"{title}: {'; '.join(each.name for each in wanted)}")
        works, repeats = self.works(experiment), experiment.repeats
        found = measure(wanted, works, repeats, self.judge, run.until)
        told = surroundings(run.command, torch.device(run.place.device))
        made = [self.line(each, setting, found, bandwidth, told) for each in wanted]
        for line in made:
            lines.append(run.out, line)
        return made

    def setting(self, experiment: Experiment) -> dict[str, Any]:
        """What its contenders share, as `lines.Line` has it."""
        return {
            "experiment": experiment.title,
            "prompts": self.run.prompts or self.pair.prompts,
            "num_prompts": experiment.prompts,
            "new_tokens": experiment.new_tokens,
            "batch": experiment.batch,
            "sampling": dict(experiment.sampling),
            "dtypes": self.dtypes,
            **({"weights": weights} if (weights := self.generator.pair.quantised) else {}),
            "device": self.run.place.device,
            "threads": self.run.place.threads,
        }

    def contenders(self, experiment: Experiment) -> list[Contender]:
        """Ours, then peers; of those that take so many prompts, the ones that are wanted."""
        found: list[Contender] = [*ours.contenders(self.generator, experiment.ways)]
        if experiment.without_pdl:
            found += ours.contenders(self.generator, experiment.ways, pdl=False)
        for name in experiment.peers:
            found += self._peer(name)
        greedy = experiment.sampling["temperature"] == 0
        fit = [
            each for each in found if each.batch >= experiment.batch and (greedy or each.samples)
        ]
        return [
            each for each in fit if self.run.pick(each.name) and each.name not in experiment.without
        ]

    def works(self, experiment: Experiment) -> list[Work]:
        """The calls of one repeat."""
        name, count = self.run.prompts or self.pair.prompts, experiment.prompts
        prompts = load(name, self.generator.tokenizer, count)
        ids, batch = [prompt.ids for prompt in prompts], experiment.batch
        sampling, new = dict(experiment.sampling), experiment.new_tokens
        return [
            Work(ids[first : first + batch], new, sampling, seed=first)
            for first in range(0, len(ids), batch)
        ]

    def line(
        self,
        contender: Contender,
        setting: Mapping[str, Any],
        found: Mapping[str, Measured],
        bandwidth: float,
        told: dict[str, Any],
    ) -> Line:
        """The line of a contender; ``told`` are the conditions of all."""
        one = found[contender.name]
        statistics = ours.statistics(one.stats) if one.stats else {}
        if one.quality:
            statistics["quality"] = mean(one.quality)
        floor = {}
        if isinstance(contender, ours.Ours) and one.seconds:
            alone = [found[name].seconds for name in ("slm", "llm") if name in found]
            if "tokens_per_round" in statistics and len(alone) == 2 and all(alone):
                statistics["draft_cost"] = median(alone[0]) / median(alone[1])
            rows = setting["batch"]
            held = ours.bytes_a_token(self.generator, contender.way, statistics, rows)
            floor = {"bandwidth": bandwidth, "bytes": held, "seconds": held / bandwidth}
        return Line(
            suite=self.run.suite,
            pair=self.pair.name,
            contender=contender.name,
            setting=dict(setting),
            text=one.text,
            tokens=one.tokens,
            seconds=one.seconds,
            first=one.first,
            options=contender.options,
            facts=self.pair.facts,
            statistics=statistics,
            floor=floor,
            conditions=told,
        )

    def close(self) -> None:
        """Free the models."""
        for each in self.peers.values():
            for contender in each:
                contender.close()
        del self.generator, self.judge
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _peer(self, name: str) -> list[Contender]:
        """A peer's contenders; none, and why, where it cannot run here, or not this pair."""
        if name not in self.peers:
            found: list[Contender] = []
            self.peers[name] = found
            module, scratch = peer(name), conversions(self.pair, self.run.scratch) / name
            why = module.missing(self.place)
            try:
                if why is None:
                    opening = self.pair, self.place, scratch, self.most
                    is_torch = name in ON_TORCH
                    found += (
                        module.contenders(*opening)
                        if is_torch
                        else apart.contenders(name, *opening)
                    )
            except CannotRun as error:
                why = str(error)
            except Exception as error:  # a peer's own trouble is told, and the others go on
                found.append(Failed(name, self.most, f"{type(error).__name__}: {error}"))
            if why is not None:
                say(f"{name} is left out: {why}")
        return self.peers[name]

    def _is_of(self, line: Line, setting: Mapping[str, Any]) -> bool:
        same = line.suite == self.run.suite and line.pair == self.pair.name
        return same and line.setting == setting and line.facts == self.pair.facts


class Failed(LLMWriter):
    """In place of a peer that could not be opened: a line of the results says so."""

    def __init__(self, name: str, batch: int, why: str) -> None:
        self.name, self.batch, self.why = name, batch, why
        self.options: dict[str, Any] = {}

    def write(self, work: Work) -> Written:
        raise RuntimeError(f"it could not be opened: {self.why}")

    def close(self) -> None:
        """It holds nothing."""


def said(experiment: Experiment) -> str:
    """An experiment in a few words."""
    sampled = "sampled" if experiment.sampling["temperature"] else "greedy"
    batch = f", batch {experiment.batch}" if experiment.batch > 1 else ""
    texts = f"{experiment.prompts} x {experiment.new_tokens} tokens"
    return f"{experiment.title}, {sampled}{batch}, {texts}"


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)
