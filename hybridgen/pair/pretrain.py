"""Stage one: the large model learns the standard library by next-token prediction."""

import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

from hybridgen.pair import attention
from hybridgen.pair.loop import Loss


def logits(model: Qwen3ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B * L, V] in bfloat16 of the tokens int64 [B, L]."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return F.linear(hidden.flatten(0, 1).to(torch.bfloat16), model.lm_head.weight)


def next_token_loss(model: Qwen3ForCausalLM, compiled: bool) -> Loss:
    """Mean cross-entropy in nats of windows int64 [B, L + 1]."""
    attention.use(model)

    def loss(window: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = logits(model, window[:, :-1])
        return F.cross_entropy(scores.float(), window[:, 1:].flatten())

    return torch.compile(loss, dynamic=False) if compiled else loss
