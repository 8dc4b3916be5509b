"""Whether a text is right, asked of the models themselves: transformers' forward, token by token.

A contender's greedy text is read back in one forward, and at every position the token that it chose
must be the likeliest one, or as good as it to within rounding (Holding whole texts beside each
other would not do: in bfloat16 two right texts part at the first tie.) What is ours and promises
the LLM's own tokens is held to them one by one besides, in measure.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridgen.benchmarks.contender import Work

ROUNDINGS = 8  # of the largest logit, as in `hybridgen.exactness`


class Judge:
    """The pair's models by name, "llm" and perhaps "slm", as transformers runs them."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.models = models

    def verdict(self, work: Work, tokens: Sequence[Sequence[int]], writers: Sequence[str]) -> str:
        """ "right", "sampled", or what is wrong with the new ``tokens``, [B] lists of ids.

        writers  of whom one must have chosen each token of a greedy text
        """
        if len(tokens) != len(work.prompts):
            return f"wrong: {len(tokens)} texts for {len(work.prompts)} prompts"
        for row, (prompt, new) in enumerate(zip(work.prompts, tokens, strict=True)):
            if len(new) != work.new_tokens:
                return f"wrong: text {row} has {len(new)} of {work.new_tokens} tokens"
            if work.is_greedy:
                fault = self._fault(prompt, new, writers)
                if fault is not None:
                    return f"wrong: text {row}, {fault}"
        return "right" if work.is_greedy else "sampled"

    def quality(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> float:
        """Mean log-likelihood of the new tokens by the LLM at temperature 1, in nats."""
        found = []
        for prompt, new in zip(prompts, tokens, strict=True):
            logprobs = self._logits("llm", prompt, new).log_softmax(-1)
            found.append(logprobs.gather(-1, _column(new, logprobs)).mean())
        return float(torch.stack(found).mean())

    def _fault(
        self, prompt: Sequence[int], new: Sequence[int], writers: Sequence[str]
    ) -> str | None:
        """The first token that no writer would choose, and by how much, if there is one."""
        short = torch.stack([self._shortfall(writer, prompt, new) for writer in writers])
        excess = short.amin(0)  # [n]: the writer who is nearest to it
        beyond = excess > 0
        if not beyond.any():
            return None
        at = int(beyond.nonzero()[0])
        who, below = " or ".join(writers), float(excess[at])
        return f"token {at} is no choice of the {who}: {below:.3g} beyond what rounding explains"

    def _shortfall(self, writer: str, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
        """By how much each token's logit is less than rounding explains, [n]; <= 0 is right."""
        logits = self._logits(writer, prompt, new)
        chosen = logits.gather(-1, _column(new, logits))[:, 0]
        eps = torch.finfo(self.models[writer].dtype).eps
        return logits.amax(-1) - chosen - ROUNDINGS * eps * logits.abs().amax(-1)

    @torch.inference_mode()
    def _logits(self, writer: str, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
        """Before each new token, float32 [n, V]."""
        model = self.models[writer]
        ids = torch.tensor([[*prompt, *new]], device=model.device)
        logits: Tensor = model(ids, logits_to_keep=len(new) + 1).logits[0, :-1].float()
        return logits


def _column(new: Sequence[int], like: Tensor) -> Tensor:
    """Ids as indices, int64 [n, 1]."""
    return torch.tensor(new, device=like.device)[:, None]
