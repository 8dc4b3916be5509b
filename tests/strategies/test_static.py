"""State and arena stay where they are, and a round's memory does not grow with the context."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Program, run
from hybridgen.engine.pair import Pair
from hybridgen.engine.state import State
from hybridgen.kernels.uncertainty import PROBS
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.strategies.routing import llm_rounds, slm_round
from hybridgen.strategies.single import single_round
from hybridgen.strategies.speculative import speculative_round

SAMPLED = (0.9, 20, 0.95, 0.0)


@pytest.fixture(scope="module")
def pair() -> Pair:
    slm, llm = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    return Pair(Decoder.from_model(slm, batch_invariant=False), Decoder.from_model(llm), 2, 250)


def programs(pair: Pair, state: State) -> dict[str, Program]:
    slm, llm = pair.slm, pair.llm
    route = partial(slm_round, state, slm, llm, "entropy", PROBS, 0.5, 1)
    return {
        "rejection": Program(partial(speculative_round, state, slm, llm, 4, True)),
        "coupled": Program(partial(speculative_round, state, slm, llm, 4, False)),
        "llm": Program(partial(single_round, state, llm, SOURCE_LLM, 384)),
        "routing": Program(route, partial(llm_rounds, state, llm, 1)),
    }


def load(pair: Pair, prompt_length: int, new_tokens: int) -> State:
    state = pair.state(2, 4)
    prompts = [[5] * prompt_length, [6] * (prompt_length - 3)]
    limits = [len(prompt) + new_tokens for prompt in prompts]
    state.load(prompts, limits, [1, 2], SAMPLED, [], 1.0)
    for model in (pair.slm, pair.llm):
        model.prefill(state.tokens[:, : prompt_length - 1], [prompt_length - 1, prompt_length - 4])
    return state


def addresses(pair: Pair, state: State) -> list[int]:
    tensors = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    return [tensor.data_ptr() for tensor in [*tensors, *pair.arena.caches]]


@pytest.mark.parametrize("name", ["rejection", "coupled", "llm", "routing"])
def test_addresses_do_not_change(pair: Pair, name: str) -> None:
    state = load(pair, 10, 30)
    before = addresses(pair, state)
    run(state, programs(pair, state)[name], ())
    assert bool(state.done.all())
    again = load(pair, 20, 5)
    assert again is state
    assert addresses(pair, again) == before


class Allocations(TorchDispatchMode):
    """The sizes, in bytes, of the storages that ops make anew."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        held = {
            x.untyped_storage().data_ptr()
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in held:
                self.sizes.append(x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("name", ["rejection", "coupled", "llm", "routing"])
def test_a_round_allocates_the_same_late_and_early(pair: Pair, name: str) -> None:
    """Within a chunk of 256 keys; on a CPU a further chunk makes each mask one chunk wider."""
    recorded = []
    for prompt_length in (10, 10, 200):
        state = load(pair, prompt_length, 30)
        with Allocations() as allocations:
            programs(pair, state)[name].round()
        recorded.append(allocations.sizes)
    assert recorded[1] == recorded[2]
    assert recorded[1]
    largest = max(recorded[2])
    assert largest < pair.arena.caches[1][0, 0].nbytes, "a layer's keys were copied"
