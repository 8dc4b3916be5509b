"""Measure a trained pair and write what the model card states: ``metrics.json``."""

import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from hybridgen.pair import data, evaluate, texts
from hybridgen.pair.recipe import Recipe, tokens_a_step

WINDOW = 512
SAMPLE_TEMPERATURE = 0.6
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
    corpus = data.load_corpus(max_files=recipe.max_files)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "llm")
    train = data.encode_documents(tokenizer, corpus.train)
    held_out = data.encode_documents(tokenizer, corpus.held_out)
    held_out_tokens = sum(map(len, held_out))
    bytes_a_token = sum(len(t.encode()) for t in corpus.held_out.values()) / held_out_tokens
    windows = torch.from_numpy(data.windows(held_out, WINDOW, np.random.default_rng(recipe.seed)))
    pair = {name: load(folder / name) for name in ("llm", "slm")}
    metrics: dict[str, Any] = {
        "python": platform.python_version(),
        "vocabulary": len(tokenizer),
        "train_files": len(train),
        "train_tokens": sum(map(len, train)),
        "held_out_files": len(held_out),
        "held_out_tokens": held_out_tokens,
        "bytes_per_token": round(bytes_a_token, 3),
    }
    phases = {"llm": recipe.llm_phases, "slm": recipe.slm_phases}
    for name, model in pair.items():
        loss = evaluate.held_out_loss(model, windows)
        steps = int(torch.load(work / f"{name}.0.pt", weights_only=True)["step"])
        metrics[name] = {
            "parameters": model.num_parameters(),
            "held_out_loss": round(loss, 4),
            "bits_per_byte": round(loss / math.log(2) / bytes_a_token, 4),
            "steps": steps,
            "tokens_seen": steps * tokens_a_step(phases[name]),
        }
    metrics |= speculation(pair["llm"], pair["slm"], held_out, recipe)
    metrics["samples"] = [sample(pair["llm"], tokenizer, prompt, recipe) for prompt in PROMPTS]
    return metrics


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
    """One completion, drawn and not chosen: the seed is the recipe's."""
    torch.manual_seed(recipe.seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = llm.generate(
        **inputs,
        do_sample=True,
        temperature=SAMPLE_TEMPERATURE,
        top_k=20,
        top_p=0.95,
        max_new_tokens=min(SAMPLE_TOKENS, recipe.eval_tokens),
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
