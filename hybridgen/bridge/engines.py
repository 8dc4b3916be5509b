"""The engine of a pair of loaded models: made once, used again, and gone with the LLM."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hybridgen.checks import shown
from hybridgen.engine.opening import check_sizes, check_weights, look_at
from hybridgen.engine.pair import Pair
from hybridgen.strategies import built_in_strategies
from hybridgen.strategies.base import RoundStrategy

ATTRIBUTE = "_hybridgen_engines"


@dataclass(frozen=True, eq=False)
class Engine:
    """A pair over the models' own weights, and what can be done with it."""

    pair: Pair
    strategies: Mapping[str, RoundStrategy]
    weights: tuple[Any, ...]  # where the models' weights were when it was made


class Engines(dict[Any, Engine]):
    """Kept with the LLM they were made for; a copy or a pickle of that has none."""

    def __deepcopy__(self, memo: Any) -> "Engines":
        return Engines()

    def __reduce__(self) -> Any:
        return Engines, ()


def check_model(name: str, model: Any) -> PreTrainedModel:
    """A decoder of transformers."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"{name} must be a loaded transformers model, got {shown(model)}")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} must be a causal language model, got an encoder and decoder")
    return model


def engine_of(
    llm: PreTrainedModel,
    slm: PreTrainedModel | None,
    max_batch_size: int,
    max_seq_len: int | None,
    slm_weights: str | None = None,
    llm_weights: str | None = None,
) -> Engine:
    """The engine of these models: that of the last call, unless their weights have been moved."""
    check_sizes(max_batch_size, max_seq_len)
    check_weights(slm_weights, llm_weights)
    engines: Engines = vars(llm).setdefault(ATTRIBUTE, Engines())
    weights = slm_weights, llm_weights
    key = id(slm), max_batch_size, max_seq_len, weights
    engine = engines.get(key)
    if engine is None or engine.weights != places(llm, slm):
        engines.pop(key, None)  # its memory is needed
        engines[key] = _make(llm, slm, max_batch_size, max_seq_len, weights)
        if engine is None and slm is not None:
            weakref.finalize(slm, forget, weakref.ref(engines), key)
    return engines[key]


def forget(engines: "weakref.ref[Engines]", key: Any) -> None:
    """An engine whose SLM has gone; one that outlives the LLM must not keep its engines."""
    kept = engines()
    if kept is not None:
        kept.pop(key, None)


def _make(
    llm: PreTrainedModel,
    slm: PreTrainedModel | None,
    rows: int,
    max_seq_len: int | None,
    weights: tuple[str | None, str | None],
) -> Engine:
    training = [(model, model.training) for model in (llm, slm) if model is not None]
    pair = look_at(slm, llm, False, *weights).load(llm.device, None, rows, max_seq_len).pair
    for model, was in training:
        model.train(was)
    strategies = {
        name: strategy
        for name, strategy in built_in_strategies(has_slm=slm is not None).items()
        if isinstance(strategy, RoundStrategy)
    }
    return Engine(pair, strategies, places(llm, slm))


def places(*models: PreTrainedModel | None) -> tuple[Any, ...]:
    """Where the weights of the models are: other than before, and an engine reads old ones."""
    return tuple(
        (parameter.data_ptr(), parameter.dtype, parameter.device)
        for model in models
        if model is not None
        for parameter in model.parameters()
    )
