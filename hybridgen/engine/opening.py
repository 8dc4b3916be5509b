"""A pair from two models: looked at, then loaded, with the cache that they share."""

from typing import Any, NamedTuple, get_args

import torch

from hybridgen.checks import check_choice, check_int
from hybridgen.engine.cache import demand
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.forks import begin_to_load
from hybridgen.engine.host_memory import give_back_what_files_hold, give_back_what_is_free
from hybridgen.engine.loading import NAMES, Found, look
from hybridgen.engine.pair import SLACK, Pair
from hybridgen.engine.room import check_room
from hybridgen.engine.transformers_decoder import TransformersDecoder
from hybridgen.names import WeightsName

DEFAULT_MAX_SEQ_LEN = 4096
LARGEST = 2**31 - 1


class Looked(NamedTuple):
    """Models that can be run; ``slm`` may be missing."""

    slm: Found | None
    llm: Found

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype | None,
        max_batch_size: int,
        max_seq_len: int | None,
    ) -> "Loaded":
        """Load the weights, and allocate the cache and the state.

        dtype          None: for each model, what is fastest, or what a loaded one has
        max_seq_len    None: the LLM's context, or `DEFAULT_MAX_SEQ_LEN` where that is longer

        Raises ValueError, naming the argument, for what does not fit, before weights are read.
        """
        positions = choose_positions(max_seq_len, self.llm.max_positions)
        found = [model for model in self if model is not None]
        footprints = [model.footprint(device, dtype) for model in found]
        needed = demand(footprints, max_batch_size, positions + SLACK, device)
        check_room(needed, max_batch_size, positions)
        slm = None if self.slm is None else self.slm.load(device, dtype, batch_invariant=False)
        give_back(slm)
        llm = self.llm.load(device, dtype)
        give_back(llm)
        return Loaded(slm, llm, Pair(slm, llm, max_batch_size, positions))


Runs = Decoder | TransformersDecoder


def give_back(model: Runs | None) -> None:
    """What loading ``model`` took and does not need."""
    give_back_what_is_free()
    if isinstance(model, Decoder):
        give_back_what_files_hold(model.weights.tensors())


class Loaded(NamedTuple):
    """Models, and what they are together."""

    slm: Runs | None
    llm: Runs
    pair: Pair


def look_at(
    slm: Any,
    llm: Any,
    trust_remote_code: bool = False,
    slm_weights: str | None = None,
    llm_weights: str | None = None,
) -> Looked:
    """Whether these can be run: hub ids, local folders or loaded models. See `loading.look`.

    slm_weights, llm_weights    "int8", see `Found.as_int8`; None: as they are

    Raises RuntimeError too, in a process that was forked so that loading would never end.
    """
    begin_to_load()
    small = None if slm is None else look(slm, NAMES[0], trust_remote_code)
    large = look(llm, NAMES[1], trust_remote_code)
    if slm_weights is not None and small is None:
        raise ValueError("slm_weights='int8' asks for an SLM, and none is given")
    return Looked(
        small if small is None or slm_weights is None else small.as_int8("slm_weights"),
        large if llm_weights is None else large.as_int8("llm_weights"),
    )


def check_weights(slm_weights: Any, llm_weights: Any) -> None:
    """Raise TypeError or ValueError, naming the argument, unless each is "int8" or None."""
    for name, value in (("slm_weights", slm_weights), ("llm_weights", llm_weights)):
        if value is not None:
            check_choice(name, value, get_args(WeightsName))


def check_sizes(max_batch_size: Any, max_seq_len: Any) -> None:
    """Raise TypeError or ValueError, naming the argument, for what no cache can be made for."""
    check_int("max_batch_size", max_batch_size, 1, LARGEST)
    if max_seq_len is not None:
        check_int("max_seq_len", max_seq_len, 2, LARGEST)


def choose_positions(max_seq_len: int | None, context: int) -> int:
    """Most tokens of a row: what was asked for, which the LLM's context must hold."""
    if max_seq_len is None:
        return min(DEFAULT_MAX_SEQ_LEN, context)
    if max_seq_len > context:
        raise ValueError(
            f"max_seq_len must be at most {context}, the LLM's context, got {max_seq_len}"
        )
    return max_seq_len
