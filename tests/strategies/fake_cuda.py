"""Run a round on fake CUDA tensors, without a card: nothing that a CUDA graph could not capture.

`FakeTensorMode` knows shapes, dtypes and devices but no values, so it raises on `.item()`, boolean
indexing and `nonzero`, and on tensors of different devices in one op. It lets copies to the host
pass and accepts 0-dimensional CPU tensors; `HostGuard` refuses both.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.state import State

POSITIONS = 512


class HostTouched(AssertionError):
    """An op read or wrote a tensor on the host."""


class HostGuard(TorchDispatchMode):
    """Raises when an op takes or gives a CPU tensor; adds up the bytes that new tensors take."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        for tensor in [*given, *made]:
            if tensor.device.type != "cuda":
                raise HostTouched(f"{func} touches a {tensor.device.type} tensor")
        held = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in made:
            if tensor.untyped_storage()._cdata not in held:
                self.allocated += tensor.untyped_storage().nbytes()
        return result


def dry_run(
    decoders: tuple[Decoder, Decoder], rows: int, num_drafts: int, round_: Callable[..., Any]
) -> int:
    """Run ``round_(state, pair)`` on a fake state and pair: the bytes that it allocated."""
    with FakeTensorMode(), torch.inference_mode():
        # A stand-in for `Pair`: its arena asks the device for its memory, which a fake has not.
        slm, llm = (fake_decoder(decoder, rows) for decoder in decoders)
        pair = SimpleNamespace(slm=slm, llm=llm)
        state = State.allocate(
            rows,
            POSITIONS,
            num_drafts,
            slm.vocab_size,
            llm.vocab_size,
            slm.dtype,
            torch.device("cuda"),
        )
        with HostGuard() as guard:
            round_(state, pair)
    return guard.allocated


def fake_decoder(decoder: Decoder, rows: int) -> Decoder:
    """``decoder`` with fake CUDA weights and cache; to be called within a FakeTensorMode."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cuda")

    fake = Decoder(decoder.config, decoder.weights.map(empty))
    layout = fake.cache_layout()
    shape = (layout.layers, 2, layout.kv_heads, rows, POSITIONS, layout.head_dim)
    fake.bind(torch.empty(shape, dtype=layout.dtype, device="cuda"))
    return fake
