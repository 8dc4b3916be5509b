"""Measure a trained pair and write what the model card states: ``metrics.json``."""

import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from hybridgen.pair import data, documents, evaluate, texts
from hybridgen.pair.completions import completions
from hybridgen.pair.recipe import SAMPLING, Recipe, tokens_a_step

WINDOW = 512
MAX_WINDOWS = 256
LAYERS = ("num_hidden_layers", "hidden_size", "intermediate_size")
HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
SAMPLE_TOKENS = 120
PROMPTS = (
    'class Stack:\n    """A last-in, first-out container."""\n\n    def __init__(self):\n',
    "def read_config(path, encoding=None):\n",
    "import os\nimport sys\n",
    "    def test_",
    "def main():\n    parser = argparse.ArgumentParser(",
)


def measure(folder: Path, work: Path, recipe: Recipe) -> dict[str, Any]:
    """Every figure of the card, for the checkpoints ``folder/llm`` and ``folder/slm``."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "llm")
    parts = documents.load(work / documents.FILE)
    train, held_out = parts["library"], parts["held_out"]
    bytes_a_token = bytes_per_token(tokenizer, held_out)
    windows = some_windows(held_out, recipe)
    pair = {name: load(folder / name) for name in ("llm", "slm")}
    metrics: dict[str, Any] = {
        "python": platform.python_version(),
        "vocabulary": len(tokenizer),
        "train_files": len(train),
        "train_tokens": sum(map(len, train)),
        "held_out_files": len(held_out),
        "held_out_tokens": sum(map(len, held_out)),
        "bytes_per_token": round(bytes_a_token, 3),
    }
    phases = {"llm": recipe.llm_phases, "slm": recipe.slm_phases}
    for name, model in pair.items():
        loss = evaluate.held_out_loss(model, windows)
        steps = int(torch.load(work / f"{name}.0.pt", weights_only=True)["step"])
        metrics[name] = {
            "parameters": model.num_parameters(),
            "shape": shape(model.config),
            "held_out_loss": round(loss, 4),
            "bits_per_byte": round(loss / math.log(2) / bytes_a_token, 4),
            "steps": steps,
            "tokens_seen": steps * tokens_a_step(phases[name]),
        }
    if recipe.start and (recipe.start / "metrics.json").exists():
        before = json.loads((recipe.start / "metrics.json").read_text(encoding="utf-8"))
        counts = ("steps", "tokens_seen")
        metrics["start"] = {n: {key: before[n][key] for key in counts} for n in pair}
        for name, counted in metrics["start"].items():
            for key, count in counted.items():
                metrics[name][key] += count
    if recipe.packages:
        metrics["packages"] = packages_metrics(pair, tokenizer, parts, recipe)
    starts = data.windows(held_out, evaluate.PROMPT_LENGTH, np.random.default_rng(recipe.seed))
    metrics["completions"] = completions(
        pair["llm"],
        tokenizer,
        starts[: recipe.eval_prompts, :-1],
        recipe.eval_tokens,
        recipe.completions,
        recipe.seed,
    )
    metrics |= speculation(pair["llm"], pair["slm"], held_out, recipe)
    metrics["sampling"] = SAMPLING
    metrics["samples"] = [sample(pair["llm"], tokenizer, prompt, recipe) for prompt in PROMPTS]
    return metrics


def some_windows(held_out: list[np.ndarray], recipe: Recipe) -> torch.Tensor:
    """Windows int64 [N, WINDOW + 1] of held-out documents, no more than a measurement needs."""
    cut = data.windows(held_out, WINDOW, np.random.default_rng(recipe.seed))
    return torch.from_numpy(cut[:MAX_WINDOWS])


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, files: list[np.ndarray]) -> float:
    """Mean UTF-8 bytes of a token, the ends of the documents counted as tokens without any."""
    texts = tokenizer.batch_decode([ids.tolist() for ids in files], skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts) / sum(map(len, files))


def shape(config: Qwen3Config) -> dict[str, int]:
    """What the card's table says of a model's build."""
    return {name: getattr(config, name) for name in (*LAYERS, *HEADS)}


def packages_metrics(
    pair: dict[str, Qwen3ForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    parts: documents.Documents,
    recipe: Recipe,
) -> dict[str, Any]:
    """The packages' list and counts, and the losses on those that were held out whole."""
    assert recipe.packages
    held_out = parts["held_out_packages"]
    bytes_a_token = bytes_per_token(tokenizer, held_out)
    windows = some_windows(held_out, recipe)
    metrics: dict[str, Any] = {
        "train_tokens": sum(map(len, parts["packages"])),
        "held_out_tokens": sum(map(len, held_out)),
        "functions": len(parts["functions"]),
        "bytes_per_token": round(bytes_a_token, 3),
    }
    for name, model in pair.items():
        loss = evaluate.held_out_loss(model, windows)
        metrics[name] = {
            "held_out_loss": round(loss, 4),
            "bits_per_byte": round(loss / math.log(2) / bytes_a_token, 4),
        }
    sources = (recipe.packages / "sources.json").read_text(encoding="utf-8")
    return metrics | {"sources": json.loads(sources)}


def speculation(
    llm: Qwen3ForCausalLM, slm: Qwen3ForCausalLM, held_out: list[np.ndarray], recipe: Recipe
) -> dict[str, Any]:
    """Acceptance on the large model's free-running text from held-out prompts."""
    rng = np.random.default_rng(recipe.seed)
    starts = data.windows(held_out, evaluate.PROMPT_LENGTH, rng)[: recipe.eval_prompts, :-1]
    results: dict[str, Any] = {"drafts": recipe.drafts, "speculation": {}}
    for label, temperature in (("greedy", 0.0), ("T=0.6", 0.6), ("T=1", 1.0)):
        prompts = torch.from_numpy(starts)
        written = texts.write(llm, prompts, recipe.eval_tokens, temperature, recipe.seed)
        chances = evaluate.acceptance(llm, slm, written, temperature)
        entry = evaluate.speculate(chances, recipe.drafts, recipe.seed).as_dict()
        entry["repeated_8grams"] = round(evaluate.repetition(written), 4)
        results["speculation"][label] = entry
    return results


def sample(llm: Qwen3ForCausalLM, tokenizer: Any, prompt: str, recipe: Recipe) -> dict[str, str]:
    """One completion as the checkpoint recommends, not chosen: the seed is the recipe's."""
    torch.manual_seed(recipe.seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = llm.generate(
        **inputs,
        do_sample=True,
        max_new_tokens=min(SAMPLE_TOKENS, recipe.eval_tokens),
        **SAMPLING,
    )
    written = output[0, inputs["input_ids"].shape[1] :]
    return {"prompt": prompt, "text": tokenizer.decode(written, skip_special_tokens=True)}


def write(metrics: dict[str, Any], path: Path) -> None:
    """Readable, and the same bytes for the same figures."""
    path.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path) -> Qwen3ForCausalLM:
    """A checkpoint for measuring."""
    # float32: greedy text from padded bfloat16 batches would flip near-ties at random.
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model
