"""The loop's state: every tensor a round reads or writes, at addresses fixed for its lifetime.

A round is a function of this state and of the two decoders; it takes no decision on the host.
The state of one (rows, num_drafts, vocabulary) shape is made once and loaded anew for each request,
so a captured round keeps pointing at the right memory. States of all shapes share that memory: one
request runs at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgen.engine.cache import ALIGNMENT, round_up
from hybridgen.engine.limits import MAX_EOS

QUANTILE_WINDOW = 128


@dataclass(frozen=True)
class State:
    """B rows, T positions, K drafts, V the narrower vocabulary of the pair."""

    vocab_size: int  # the wider vocabulary: committed ids may be up to here

    tokens: Tensor  # [B, T] int64: the prompt, then what was committed
    source: Tensor  # [B, T] int8: which model wrote each token
    length: Tensor  # [B] int64: committed tokens
    limit: Tensor  # [B] int64: the length at which the row ends
    done: Tensor  # [B] bool
    broken: Tensor  # [B] bool: a model gave NaN or +inf logits for this row
    seed: Tensor  # [B] int64
    sampling: Tensor  # [B, 4] float64: temperature, top-k, top-p, min-p
    eos: Tensor  # [B, MAX_EOS] int64, padded with -1
    offsets: Tensor  # [K + 2, 1] int64: -2, -1, 0, ..., K - 1
    block: Tensor  # [B, K + 1] int64: the last committed token, then the drafts
    draft_logits: Tensor  # [B, K, V]
    draft_truncation: Tensor  # [B, K, 3] float32: what makes a draft's logits its distribution
    routed: Tensor  # [B] bool: the row's next token is the LLM's
    llm_cached: Tensor  # [B] int64: leading tokens whose K/V the LLM holds
    pending: Tensor  # [] int64: most tokens that a routed row's LLM has yet to read
    threshold: Tensor  # [B] float32
    metrics: Tensor  # [B, QUANTILE_WINDOW] float32: the last routing metrics, -inf where unseen
    decisions: Tensor  # [B] int64: routing decisions taken

    @classmethod
    def allocate(
        cls,
        rows: int,
        positions: int,
        num_drafts: int,
        slm_vocab: int,
        llm_vocab: int,
        logits_dtype: torch.dtype,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> "State":
        """Zero-filled tensors; ``num_drafts`` 0 for strategies that draft nothing.

        memory    uint8 [bytes] on ``device``, where they are laid out one after the other, whatever
                  it holds; None: memory of their own
        """
        used = 0

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            nonlocal used
            if memory is None:
                return torch.zeros(shape, dtype=dtype, device=device)
            first, size = used, math.prod(shape) * dtype.itemsize
            used += round_up(size, ALIGNMENT)
            return memory[first : first + size].view(dtype).view(shape)

        f32, flag = torch.float32, torch.bool
        return cls(
            vocab_size=max(slm_vocab, llm_vocab),
            tokens=zeros(rows, positions),
            source=zeros(rows, positions, dtype=torch.int8),
            length=zeros(rows),
            limit=zeros(rows),
            done=zeros(rows, dtype=flag),
            broken=zeros(rows, dtype=flag),
            seed=zeros(rows),
            sampling=zeros(rows, 4, dtype=torch.float64),
            eos=zeros(rows, MAX_EOS),
            offsets=torch.arange(-2, num_drafts, dtype=torch.int64, device=device)[:, None],
            block=zeros(rows, num_drafts + 1),
            draft_logits=zeros(rows, num_drafts, min(slm_vocab, llm_vocab), dtype=logits_dtype),
            draft_truncation=zeros(rows, num_drafts, 3, dtype=f32),
            routed=zeros(rows, dtype=flag),
            llm_cached=zeros(rows),
            pending=zeros(),
            threshold=zeros(rows, dtype=f32),
            metrics=zeros(rows, QUANTILE_WINDOW, dtype=f32),
            decisions=zeros(rows),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of ``memory`` that `allocate` needs for this shape; the device may be "meta"."""
        return sum(
            round_up(t.nbytes, ALIGNMENT) for t in vars(self).values() if isinstance(t, Tensor)
        )

    def load(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: tuple[float, float, float, float],
        eos: Sequence[int],
        threshold: float,
    ) -> None:
        """Start a request: prompts[r] are row r's token ids, limits[r] the length it may reach."""
        width = max(len(prompt) for prompt in prompts)
        padded = integers([[*prompt] + [0] * (width - len(prompt)) for prompt in prompts])
        lengths = integers([len(prompt) for prompt in prompts])
        self.tokens[:, :width].copy_(padded)
        self.source.zero_()
        self.length.copy_(lengths)
        self.limit.copy_(integers(limits))
        self.done.fill_(False)
        self.broken.fill_(False)
        self.seed.copy_(integers(seeds))
        self.sampling.copy_(torch.tensor(sampling, dtype=torch.float64, device="cpu"))
        self.eos.copy_(integers([*eos] + [-1] * (MAX_EOS - len(eos))))
        self.routed.fill_(False)
        self.llm_cached.copy_(lengths - 1)
        self.threshold.fill_(threshold)
        self.metrics.fill_(float("-inf"))
        self.decisions.zero_()


def integers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")
