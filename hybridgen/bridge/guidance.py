"""Classifier-free guidance (Sanchez et al. 2023, arXiv 2306.17806), asked about drafts.

transformers' own processor keeps what it has read, and takes every question for the next token. A
draft that is rejected must be forgotten: this one looks at which tokens it is asked about.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from hybridgen.prefix import common_prefix


class Guidance:
    """``scale`` times the way from the scores of ``model`` without the prompt to those with it.

    processor    transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor
    width        tokens of a padded prompt
    rows         prompts of the batch
    """

    llm_only = True

    def __init__(self, processor: Any, width: int, rows: int) -> None:
        self.scale, self.model = processor.guidance_scale, processor.model
        context = processor.unconditional_context
        self.ids, self.mask = context["input_ids"], context["attention_mask"]
        self.width, self.rows = width, rows
        forward = inspect.signature(self.model.forward).parameters
        self.argument = "cache" if "cache" in forward else "past_key_values"
        self._read: dict[int, tuple[list[int], Any]] = {}  # of each text: tokens and their cache

    def __call__(self, text: int, ids: Tensor, scores: Tensor) -> Tensor:
        """See `RowFunction`."""
        beginning, mask = self._beginning(text, ids)
        new = ids[:, self.width :]
        wanted = torch.cat([beginning, new], dim=1)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        without = torch.log_softmax(self._logits(text, wanted, mask), dim=-1)
        with_prompt = torch.log_softmax(scores, dim=-1)
        guided: Tensor = self.scale * (with_prompt - without) + without
        return guided

    def _beginning(self, text: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What stands in place of the prompt, by default its last token; and its mask."""
        if self.ids is None:
            last = ids[:, self.width - 1 : self.width]
            return last, torch.ones_like(last)
        row = text * len(self.ids) // self.rows
        given = self.ids[row : row + 1].to(ids.device)
        if self.mask is None:
            return given, torch.ones_like(given)
        return given, self.mask[row : row + 1].to(ids.device)

    def _logits(self, text: int, wanted: Tensor, mask: Tensor) -> Tensor:
        """Logits [1, V] float32 after ``wanted``: what has been read before is not read again."""
        tokens = wanted[0].tolist()
        read, cache = self._read.pop(text, ([], None))
        kept = min(common_prefix(read, tokens), len(tokens) - 1)
        if cache is not None and kept < len(read):
            cache = forget(cache, len(read) - kept) if kept else None
        kept = kept if cache is not None else 0
        output = self.model(
            wanted[:, kept:], attention_mask=mask, use_cache=True, **{self.argument: cache}
        )
        self._read[text] = tokens, output[self.argument]
        logits: Tensor = output.logits[:, -1].float()
        return logits


def forget(cache: Any, tokens: int) -> Any:
    """The cache without its last ``tokens``; None where a layer cannot forget."""
    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        return None
    cache.crop(-tokens)
    return cache
