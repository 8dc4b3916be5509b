"""A model on another device than the texts: its tokens go there, its logits come back.

A draft step then copies a few ids and a row of logits between the cards, which is little beside
reading the weights. Such rounds are not captured in a graph.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hybridgen.engine.cache import CacheLayout
from hybridgen.engine.model import Model


class Remote:
    """``model``, as rounds whose state is on the device ``home`` call it (see `Model`)."""

    capturable = False

    def __init__(self, model: Model, home: torch.device) -> None:
        self.model, self.home = model, home
        self.vocab_size = model.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def quantised(self) -> str | None:
        """The format of the weights, where it is not the dtype."""
        return getattr(self.model, "quantised", None)

    @property
    def max_positions(self) -> int:
        return self.model.max_positions

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, as far as they are known."""
        return getattr(self.model, "nbytes", 0)

    def cache_layout(self) -> CacheLayout:
        """What the model keeps per position, on its own device."""
        return replace(self.model.cache_layout(), device=self.model.device)

    def bind(self, cache: Tensor) -> None:
        self.model.bind(cache)

    def prefill(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        """See `Model.prefill`; ``tokens`` are on ``home``."""
        self.model.prefill(tokens.to(self.model.device), lengths, rows, starts)

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        """See `Model.__call__`; ``tokens`` and ``start`` are on ``home``, and so are the logits."""
        device = self.model.device
        return self.model(tokens.to(device), start.to(device)).to(self.home)


def within_reach(model: Model, home: torch.device) -> Model:
    """``model``, `Remote` if it is not on ``home``."""
    return model if model.device == home else Remote(model, home)
