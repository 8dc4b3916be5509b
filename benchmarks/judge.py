"""Whether a text is right, asked of the models themselves: transformers' forward, token by token.

A text is read back in one forward. At every position of a greedy one, the token that was chosen
must be the likeliest; of a sampled one, it must be among those that top-k and top-p leave, before
what they leave is made a distribution again (which is where engines differ). Both are told up to
rounding. (Holding whole texts beside each other would not do: in bfloat16 two right texts part at
the first tie.) What is ours and promises the LLM's own tokens is held to them one by one besides,
in measure.py.
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

        writers  of whom one must have been able to choose each token
        """
        if len(tokens) != len(work.prompts):
            return f"wrong: {len(tokens)} texts for {len(work.prompts)} prompts"
        for row, (prompt, new) in enumerate(zip(work.prompts, tokens, strict=True)):
            if len(new) != work.new_tokens:
                return f"wrong: text {row} has {len(new)} of {work.new_tokens} tokens"
            beyond = torch.stack([self._beyond(work, prompt, new, each) for each in writers])
            if beyond.all(0).any():
                at = int(beyond.all(0).nonzero()[0])
                return f"wrong: text {row}, token {at} is no choice of the {' or '.join(writers)}"
        return "right" if work.is_greedy else "sampled"

    def quality(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> float:
        """Mean log-likelihood of the new tokens by the LLM at temperature 1, in nats."""
        found = []
        for prompt, new in zip(prompts, tokens, strict=True):
            logprobs = self._logits("llm", prompt, new).log_softmax(-1)
            found.append(logprobs.gather(-1, _column(new, logprobs)).mean())
        return float(torch.stack(found).mean())

    def _beyond(self, work: Work, prompt: Sequence[int], new: Sequence[int], writer: str) -> Tensor:
        """Which of the tokens a writer cannot have chosen, whatever its rounding: bool [n]."""
        logits = self._logits(writer, prompt, new)
        eps = torch.finfo(self.models[writer].dtype).eps
        rounding = ROUNDINGS * eps * logits.abs().amax(-1, keepdim=True)
        better = logits > logits.gather(-1, _column(new, logits)) + rounding  # [n, V]
        if work.is_greedy:
            return better.any(-1)
        top_k, top_p = work.sampling.get("top_k", 0), work.sampling.get("top_p", 1.0)
        least = torch.where(better, logits - rounding, logits + rounding)  # of those before it
        mass = (least / work.sampling["temperature"]).softmax(-1).where(better, 0).sum(-1)
        too_many = better.sum(-1) >= (top_k or logits.shape[-1])
        return too_many | (mass >= top_p) if top_p < 1 else too_many

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
