"""State and arena stay where they are, and a round's memory does not grow with the context."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random_model
from table_decoder import write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.uncertainty import PROBS
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.profiling.measuring import Kind
from hybridgen.strategies.drafts import SlmDrafts, speculative_round
from hybridgen.strategies.lookup import NgramDrafts
from hybridgen.strategies.routing import Routed, slm_round
from hybridgen.strategies.single import single_round

SAMPLED = (0.9, 20, 0.95, 0.0)


@pytest.fixture(scope="module")
def pair() -> Pair:
    slm, llm = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    return Pair(Decoder.from_model(slm, batch_invariant=False), Decoder.from_model(llm), 2, 250)


PROPOSER, NGRAMS = SlmDrafts(), NgramDrafts()
PROGRAMS = ["rejection", "coupled", "lookup", "llm", "routing", "recorded", "recorded routing"]


def program(batch: Batch, name: str) -> Program:
    if name in ("rejection", "coupled"):
        return Repeat(batch.round(speculative_round, PROPOSER, 4, name == "rejection"))
    if name == "lookup":
        return Repeat(batch.round(speculative_round, NGRAMS, 4, False))
    if name == "recorded":
        recorded = batch.own(Kind(by_slm=True, drafts=True)).batch
        return Repeat(recorded.round(speculative_round, PROPOSER, 4, False))
    if name == "recorded routing":
        batch = batch.own(Kind(by_slm=True, drafts=False)).batch
    if name == "llm":
        return Repeat(batch.round(single_round, SOURCE_LLM))
    return Routed(batch.round(slm_round, "entropy", PROBS, True, 1), batch, 1)


def load(pair: Pair, prompt_length: int, new_tokens: int) -> Batch:
    batch = pair.batch(2)
    prompts = [[5] * prompt_length, [6] * (prompt_length - 3)]
    limits = [len(prompt) + new_tokens for prompt in prompts]
    batch.rows.load(prompts, limits, [1, 2], SAMPLED, [])
    batch.routing.load(batch.rows, 1.0, 0.5)
    for model in (pair.slm, pair.llm):
        model.prefill(batch.rows.tokens, [prompt_length - 1, prompt_length - 4])
    return batch


def rounds(program: Program) -> set[Callable[[], None]]:
    """What a program may enqueue."""
    if isinstance(program, Routed):
        return {program.step, program.catch_up, *program.llm_rounds.values()}
    assert isinstance(program, Repeat)
    return {program.round}


def addresses(pair: Pair, batch: Batch) -> list[int]:
    """Of all that a round reads or writes from one call to the next."""
    parts = (batch.rows, batch.routing, *(batch.drafts(4, q) for q in (True, False)))
    tensors = [v for part in parts for v in vars(part).values() if isinstance(v, torch.Tensor)]
    return [tensor.data_ptr() for tensor in [*tensors, *pair.arena.caches]]


@pytest.mark.parametrize("name", PROGRAMS)
def test_addresses_do_not_change(pair: Pair, name: str) -> None:
    """Over more than 100 rounds, each of which writes at least a token, and from call to call."""
    batch = load(pair, 10, 220)
    before, writing = addresses(pair, batch), program(batch, name)
    for _ in range(4):
        write(load(pair, 10, 220), writing)
        assert bool(batch.rows.done.all())
        assert addresses(pair, batch) == before
    again = load(pair, 20, 5)
    assert again is batch
    assert addresses(pair, again) == before


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_round_of_one_name_is_one_round(pair: Pair, name: str) -> None:
    batch = pair.batch(2)
    assert rounds(program(batch, name)) == rounds(program(batch, name))
    assert not rounds(program(batch, name)) & rounds(program(pair.batch(1), name))


def test_other_static_arguments_are_another_round(pair: Pair) -> None:
    batch = pair.batch(2)
    rounds = {
        batch.round(speculative_round, proposer, count, with_q)
        for proposer in (PROPOSER, SlmDrafts())
        for count in (1, 2, 15)
        for with_q in (True, False)
    }
    assert len(rounds) == 12


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


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_round_allocates_the_same_late_and_early(pair: Pair, name: str) -> None:
    """Within a chunk of 256 keys; on a CPU a further chunk makes each mask one chunk wider."""
    recorded = []
    for prompt_length in (10, 10, 200):
        batch = load(pair, prompt_length, 30)
        with Allocations() as allocations:
            program(batch, name).enqueue()
        recorded.append(allocations.sizes)
    assert recorded[1] == recorded[2]
    assert recorded[1]
    largest = max(recorded[2])
    assert largest < pair.arena.caches[1][0, 0].nbytes, "a layer's keys were copied"
