"""Text that a model writes by itself, many rows at a time and past every end of a document."""

import torch
from transformers import DynamicCache, Qwen3ForCausalLM


@torch.no_grad()
def write(
    model: Qwen3ForCausalLM, prompts: torch.Tensor, new_tokens: int, temperature: float, seed: int
) -> torch.Tensor:
    """The prompts int64 [N, P] continued to [N, P + new_tokens]; temperature 0 is greedy.

    An end of text does not stop a row: another document follows it, as in the training windows.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = DynamicCache(config=model.config)
    written = [prompts]
    for _ in range(new_tokens):
        # By position: transformers renamed this argument between the versions we support.
        scores = model(written[-1], None, None, cache, logits_to_keep=1).logits[:, -1]
        written.append(_draw(scores.float(), temperature, generator))
    return torch.cat(written, dim=1)


def _draw(scores: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return scores.argmax(-1, keepdim=True)
    return torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)
