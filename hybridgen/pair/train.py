"""Train the embedded pair: tokenizer, large model, then the small one distilled from it.

The text is the running interpreter's standard library, so nothing is downloaded, and with
``--packages`` what ``python -m hybridgen.pair.packages`` fetched. The stages run in order; an
interrupted run continues from the restart files in the work folder. The result is two ordinary
transformers checkpoints, OUT/llm and OUT/slm, with OUT/metrics.json and OUT/README.md.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from hybridgen.pair import (
    card,
    data,
    distill,
    documents,
    evaluate,
    loop,
    measure,
    models,
    parallel,
    pretrain,
)
from hybridgen.pair.recipe import SAMPLING, SMOKE, Recipe

CHECK_WINDOWS = 32
SAMPLES_A_FILE = 192


class Trainer:
    """One process's share of both stages."""

    def __init__(self, rank: int, recipe: Recipe, work: Path) -> None:
        self.rank = rank
        self.recipe = recipe
        self.work = work
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
        parts = documents.load(work / documents.FILE)
        self.documents = documents.training_files(parts)
        self.functions = parts["functions"]
        length = max(phase.length for phase in recipe.llm_phases) // 2
        windows = data.windows(parts["held_out"], length, np.random.default_rng(recipe.seed))
        self.check = torch.from_numpy(windows[:CHECK_WINDOWS])
        self.vocabulary = (len(self.tokenizer), self.tokenizer.eos_token_id)

    def llm(self) -> Qwen3ForCausalLM:
        """Stage one: the large model."""
        model = self._given("llm") or models.build(
            models.llm_config(*self.vocabulary), self.recipe.seed
        )
        run = loop.Run(
            name="llm",
            model=model,
            loss=pretrain.next_token_loss(model, self.recipe.compiled),
            batches=partial(data.batches, self.documents, self.functions),
            phases=self.recipe.llm_phases,
            budget=self.recipe.llm_budget,
            folder=self.work,
            seed=self.recipe.seed,
            lr_scale=self.recipe.lr_scale,
            on_save=partial(self.publish, model, "llm"),
        )
        loop.fit(run, self.rank)
        return model

    def samples(self, llm: Qwen3ForCausalLM) -> list[np.ndarray]:
        """The large model's own texts, this process's share, kept by the part for a restart."""
        count = max(1, self.recipe.sample_count // parallel.world_size())
        texts: list[np.ndarray] = []
        for part, first in enumerate(range(0, count, SAMPLES_A_FILE)):
            path = self.work / f"samples.{self.rank}.{part}.npy"
            if not path.exists():
                written = distill.sample_texts(
                    llm,
                    self.documents,
                    min(SAMPLES_A_FILE, count - first),
                    self.recipe.sample_length,
                    np.random.default_rng([self.recipe.seed, self.rank, part]),
                )
                partial_file = path.with_suffix(".partial.npy")
                np.save(partial_file, np.stack(written))
                partial_file.replace(path)
            texts.extend(np.load(path))
        return texts

    def slm(self, llm: Qwen3ForCausalLM) -> None:
        """Stage two: the small model, from the large one in bfloat16."""
        teacher = llm.bfloat16().requires_grad_(False)
        samples = self.samples(teacher)
        model = self._given("slm")
        if model is None:
            model = models.build(models.slm_config(*self.vocabulary), self.recipe.seed)
            models.inherit_embedding(model, teacher)
        run = loop.Run(
            name="slm",
            model=model,
            loss=distill.distillation_loss(teacher, model, self.recipe.compiled),
            batches=partial(distill.mixed_batches, self.documents, samples),
            phases=self.recipe.slm_phases,
            budget=self.recipe.slm_budget,
            folder=self.work,
            seed=self.recipe.seed + 1,
            lr_scale=self.recipe.lr_scale,
            on_save=partial(self.publish, model, "slm"),
        )
        loop.fit(run, self.rank)

    def _given(self, name: str) -> Qwen3ForCausalLM | None:
        """The model to start from, in float32, where the recipe names a pair."""
        return measure.load(self.recipe.start / name) if self.recipe.start else None

    def publish(self, model: Qwen3ForCausalLM, name: str) -> str:
        """Write the checkpoint so far, and say how good it is."""
        export(model, self.tokenizer, self.work / name)
        return f"held-out loss {evaluate.held_out_loss(model, self.check):.4f}"


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary checkpoint in bfloat16; the model in training keeps its float32."""
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    twin = Qwen3ForCausalLM(model.config).bfloat16()
    twin.load_state_dict(state)
    end = model.config.eos_token_id
    twin.generation_config = GenerationConfig(
        do_sample=True, **SAMPLING, eos_token_id=end, pad_token_id=end
    )
    twin.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_pair(rank: int, recipe: Recipe, work: Path) -> None:
    """Both stages, in one process of several."""
    trainer = Trainer(rank, recipe, work)
    trainer.slm(trainer.llm())


def report(recipe: Recipe, work: Path, out: Path) -> None:
    """Copy the checkpoints to their place, measure them, and write the card."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    for name in ("llm", "slm"):
        model = measure.load(work / name)
        export(model, tokenizer, out / name)
    metrics = measure.measure(out, work, recipe)
    measure.write(metrics, out / "metrics.json")
    (out / "README.md").write_text(card.render(metrics), encoding="utf-8")


def prepare(recipe: Recipe, work: Path) -> None:
    """Tokenizer and encoded documents in the work folder, once."""
    if (work / documents.FILE).exists():
        return
    corpus = data.load_corpus(max_files=recipe.max_files, packages=recipe.packages)
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(recipe.start / "llm")
        if recipe.start
        else data.train_tokenizer(corpus)
    )
    tokenizer.save_pretrained(work / "tokenizer")
    documents.save(documents.encode(tokenizer, corpus), work / documents.FILE)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    recipe, work, out = parse(arguments)
    work.mkdir(parents=True, exist_ok=True)
    prepare(recipe, work)
    parallel.launch(train_pair, recipe.processes, recipe, work)
    report(recipe, work, out)


def parse(arguments: list[str] | None) -> tuple[Recipe, Path, Path]:
    """The recipe, the work folder and the output folder."""
    parser = argparse.ArgumentParser(
        prog="python -m hybridgen.pair.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path(__file__).parent, help="where the pair goes (%(default)s)")
    add("--work", type=Path, default=Path("build/pair"), help="restart files (%(default)s)")
    add("--packages", type=Path, help="a folder of packages' sources to learn from as well")
    add("--start", type=Path, help="a folder with a pair to train on, instead of a new one")
    add(
        "--lr-scale",
        type=float,
        default=Recipe.lr_scale,
        help="factor on every learning rate (%(default)s)",
    )
    add("--seed", type=int, default=Recipe.seed, help="weights, batches, samples (%(default)s)")
    add("--processes", type=int, help=f"single-threaded trainers ({Recipe.processes})")
    for name in ("llm", "slm"):
        steps = getattr(Recipe, f"{name}_budget").steps
        add(f"--{name}-steps", type=int, help=f"length of the {name}'s training ({steps})")
        add(f"--{name}-minutes", type=float, help="a time instead: the schedule follows the clock")
    add("--smoke", action="store_true", help="a few steps on a few files, to see that all works")
    options = parser.parse_args(arguments)
    recipe = replace(
        SMOKE if options.smoke else Recipe(),
        seed=options.seed,
        packages=options.packages,
        start=options.start,
        lr_scale=options.lr_scale,
    )
    if options.processes:
        recipe = replace(recipe, processes=options.processes)
    return (
        replace(
            recipe,
            llm_budget=_budget(recipe.llm_budget, options.llm_steps, options.llm_minutes),
            slm_budget=_budget(recipe.slm_budget, options.slm_steps, options.slm_minutes),
        ),
        options.work,
        options.out,
    )


def _budget(default: loop.Budget, steps: int | None, minutes: float | None) -> loop.Budget:
    return loop.Budget(default.steps if steps is None else steps, minutes)


if __name__ == "__main__":
    main()
