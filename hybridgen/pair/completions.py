"""What people see first: README's prompt completed many times, as the checkpoint recommends."""

import ast
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from hybridgen.pair import evaluate
from hybridgen.pair.clean import parse
from hybridgen.pair.recipe import SAMPLING

PROMPT = "def quicksort(items):"
# A text that was cut off may end within a statement of so many lines.
MAX_TAIL = 5


def draw(model: Qwen3ForCausalLM, prompts: torch.Tensor, tokens: int, seed: int) -> list[list[int]]:
    """The new tokens of each prompt int64 [N, P], drawn as recommended, up to an end of text."""
    torch.manual_seed(seed)
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        max_new_tokens=tokens,
        **SAMPLING,
    )
    end = model.config.eos_token_id
    rows: list[list[int]] = output[:, prompts.shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def completions(
    model: Qwen3ForCausalLM, tokenizer: Any, starts: np.ndarray, tokens: int, count: int, seed: int
) -> dict[str, Any]:
    """How ``count`` texts from README's prompt fare, and those from held-out ``starts`` [N, P]."""
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"].repeat(count, 1)
    rows = draw(model, prompt, tokens, seed)
    end = model.config.eos_token_id
    written = [PROMPT + tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    ended = [row[-1] == end for row in rows]
    free = draw(model, torch.from_numpy(starts), tokens, seed)
    return {
        "prompt": PROMPT,
        "count": count,
        "parse": sum(parses(text, whole) for text, whole in zip(written, ended, strict=True)),
        "ended": sum(ended),
        "repeated_8grams": round(evaluate.repeated(rows), 4),
        "repeated_8grams_held_out": round(evaluate.repeated(free), 4),
    }


def parses(text: str, whole: bool) -> bool:
    """True for Python with a body, where a text that was cut off may lose its unfinished tail."""
    lines = text.rstrip().split("\n")
    for dropped in range(1 if whole else MAX_TAIL + 1):
        tree = parse("\n".join(lines[: len(lines) - dropped]))
        if tree and any(isinstance(node, ast.FunctionDef) for node in tree.body):
            return True
    return False
