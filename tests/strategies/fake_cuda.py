"""Run a round on fake CUDA tensors, without a card: nothing that a CUDA graph could not capture.

`FakeTensorMode` knows shapes, dtypes and devices but no values, so it raises on `.item()`, boolean
indexing and `nonzero`, and on tensors of different devices in one op. It lets copies to the host
pass and accepts 0-dimensional CPU tensors; `HostGuard` refuses both.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.limits import MAX_DRAFTS
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts, Memory, Routing, Rows
from hybridgen.engine.transformers_decoder import TransformersDecoder

POSITIONS = 512
AnyDecoder = Decoder | TransformersDecoder


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
    decoders: tuple[AnyDecoder, AnyDecoder], rows: int, round_: Callable[[Batch], None]
) -> int:
    """Run ``round_(batch)`` on fake rows: the bytes that it allocated.

    The rows are some of a larger state, as a pair's are; its arena would ask the device for memory.
    """
    with FakeTensorMode(), torch.inference_mode():
        slm, llm = (fake_decoder(decoder, rows) for decoder in decoders)
        memory, largest = Memory(torch.device("cuda")), rows + 3
        drawn_from = min(slm.vocab_size, llm.vocab_size)
        batch = Batch(
            slm,
            llm,
            Rows.allocate(memory, largest, POSITIONS, llm.vocab_size).first(rows),
            Drafts.allocate(memory, largest, MAX_DRAFTS, drawn_from, slm.dtype).first(rows),
            Routing.allocate(memory, largest).first(rows),
        )
        with HostGuard() as guard:
            round_(batch)
    return guard.allocated


def fake_decoder(decoder: AnyDecoder, rows: int) -> AnyDecoder:
    """``decoder`` with fake CUDA weights and cache; to be called within a FakeTensorMode.

    One through transformers must not be batch-invariant: on a CPU its modules are changed for it.
    """

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cuda")

    fake: Any
    if isinstance(decoder, Decoder):
        fake = Decoder(decoder.config, decoder.weights.map(empty))
    else:
        fake = TransformersDecoder(with_tensors(decoder.module, empty), facts=decoder.facts)
    layout = fake.cache_layout()
    shape = (layout.layers, 2, layout.kv_heads, rows, POSITIONS, layout.head_dim)
    fake.bind(torch.empty(shape, dtype=layout.dtype, device="cuda"))
    return fake


def with_tensors(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a module whose parameters and buffers are made of its own by ``change``."""
    memo: dict[int, Any] = {id(buffer): change(buffer) for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(change(parameter), requires_grad=False)
    return copy.deepcopy(module, memo)
