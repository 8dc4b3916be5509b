"""From what transformers' `generate` has prepared to a request of ours, or a refusal by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteria,
)

from hybridgen.bridge.engines import Engine
from hybridgen.bridge.processors import Prompts, plan
from hybridgen.checks import check_choice, check_no_more, quoted, shown
from hybridgen.engine.adjustment import is_llms
from hybridgen.engine.limits import MAX_EOS
from hybridgen.fields import Facts, merged
from hybridgen.parameters import REUSE, SEEDS
from hybridgen.request import Request
from hybridgen.strategies.base import RoundStrategy
from hybridgen.strategies.declarations import BUILT_IN

OPTIONS = merged(*(declaration.options for declaration in BUILT_IN), (REUSE,))
# What transformers hands to a decoding method and is not a question to us.
SILENT = {
    "attention_mask",
    "position_ids",
    "cache_position",
    "use_cache",
    "logits_to_keep",
    "synced_gpus",
}
CACHES = {"cache", "past_key_values"}
# By a request's own config: an argument, and the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
    "token_healing": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "use_cache": (None, True),
}


def refuse(config: GenerationConfig, model_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for what is asked for and not done here."""
    for name, silent in REFUSED.items():
        value = getattr(config, name, None)
        if value not in silent:
            accepted = " or ".join(map(repr, silent))
            raise ValueError(f"{name} must be {accepted} with hybridgen, got {quoted(value)}")
    if config.cache_implementation == "quantized":
        raise ValueError("cache_implementation='quantized': hybridgen's own cache keeps all digits")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"hybridgen is greedy or samples, and the arguments ask for {mode.value}")
    if model_kwargs.get("synced_gpus"):
        raise ValueError("synced_gpus must be False: hybridgen does not run models in pieces")
    for name, value in model_kwargs.items():
        if name in CACHES and value is not None and value.get_seq_length() > 0:
            raise ValueError(
                f"{name} must be what the last call returned under that name, or empty: hybridgen "
                f"keeps a cache of its own, got {shown(value)}"
            )
        if name not in SILENT | CACHES and value is not None:
            raise ValueError(f"{name} is nothing that hybridgen's models take: text alone")


def prompts_of(input_ids: Tensor, mask: Tensor | None, model_kwargs: Mapping[str, Any]) -> Prompts:
    """The rows of a padded batch. Padding on the right is left out, as if it were not there."""
    rows = input_ids.tolist()
    width = input_ids.shape[1]
    if mask is None:
        prompts = Prompts(tuple(map(tuple, rows)), ((),) * len(rows), width)
    else:
        prompts = _unpadded(rows, (mask != 0).tolist(), width)
    if not all(prompts.ids):
        raise ValueError("input_ids must have at least one token in each row that is not padding")
    _check_positions(model_kwargs.get("position_ids"), input_ids, mask)
    return prompts


def _unpadded(rows: list[list[int]], mask: list[list[bool]], width: int) -> Prompts:
    ids, fronts = [], []
    for row, kept in zip(rows, mask, strict=True):
        first, count = (kept.index(True) if True in kept else width), sum(kept)
        if not all(kept[first : first + count]):
            raise ValueError("attention_mask must not have holes: zeros at the ends of a row only")
        ids.append(tuple(row[first : first + count]))
        fronts.append(tuple(row[:first]))
    return Prompts(tuple(ids), tuple(fronts), width)


def _check_positions(given: Any, input_ids: Tensor, mask: Tensor | None) -> None:
    """Positions count the tokens of a row from 0."""
    if given is None:
        return
    seen = torch.ones_like(input_ids) if mask is None else (mask != 0).long()
    expected = (seen.cumsum(1) - 1).to(given.device)
    real = seen.bool().to(given.device)
    if given.shape != expected.shape or not torch.equal(given[real], expected[real]):
        raise ValueError("position_ids must count the tokens of each row from 0, padding left out")


def end_ids(criteria: Sequence[StoppingCriteria]) -> tuple[int, ...]:
    """The ids that end a text."""
    found = [c.eos_token_id for c in criteria if isinstance(c, EosTokenCriteria)]
    ids = tuple(dict.fromkeys(int(i) for tensor in found for i in tensor.flatten().tolist()))
    if len(ids) > MAX_EOS:
        raise ValueError(f"eos_token_id must be at most {MAX_EOS} ids, got {len(ids)}")
    return ids


def asked_by_token(criteria: Sequence[StoppingCriteria]) -> list[StoppingCriteria]:
    """The criteria that must be asked after each token: a row ends by eos and length by itself."""
    return [c for c in criteria if not isinstance(c, (EosTokenCriteria, MaxLengthCriteria))]


def new_tokens(config: GenerationConfig, criteria: Sequence[StoppingCriteria], width: int) -> int:
    """How many tokens may be written."""
    lengths = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    return min(lengths, default=config.max_length) - width


def choose(engine: Engine, options: Mapping[str, Any]) -> tuple[RoundStrategy, dict[str, Any]]:
    """The strategy asked for, and the checked options of all; None is an option's default."""
    known = ["strategy", *(field.name for field in OPTIONS)]
    check_no_more("generate", [name for name in options if name not in known], known)
    name = options.get("strategy") or "speculative"
    strategy = engine.strategies[check_choice("strategy", name, engine.strategies)]
    if strategy.reads_slm and engine.pair.slm is None:
        raise ValueError(f"strategy={quoted(name)} runs an SLM, and there is none: give slm=")
    given = {key: value for key, value in options.items() if value is not None}
    return strategy, {field.name: field.value(given, Facts()) for field in OPTIONS}


def request_of(
    engine: Engine,
    options: Mapping[str, Any],
    seed: int,
    prompts: Prompts,
    processors: Sequence[Any],
    criteria: Sequence[StoppingCriteria],
    config: GenerationConfig,
) -> tuple[RoundStrategy, Request]:
    """The strategy, and the request that asks it for what transformers prepared."""
    strategy, values = choose(engine, options)
    count = new_tokens(config, criteria, prompts.width)
    check_room(engine, strategy, prompts, count)
    adjustment, sampling = plan(processors, prompts, bool(config.do_sample))
    if not strategy.llm_decides and any(is_llms(function) for function in adjustment.functions):
        raise ValueError(
            f"guidance_scale must be 1 with strategy={quoted(strategy.declaration.name)}, whose "
            "text is not the LLM's alone"
        )
    values |= {
        "strategy": strategy.declaration.name,
        "max_new_tokens": count,
        "seed": tuple((seed + row) % SEEDS for row in range(len(prompts.ids))),
        "eos_token_id": end_ids(criteria),
        "ignore_eos": False,
    }
    request = Request(
        prompt_ids=prompts.ids,
        prompt_texts=(None,) * len(prompts.ids),
        sampling=sampling,
        values=MappingProxyType(values),
        is_batch=True,
        adjustment=adjustment,
    )
    return strategy, request


def check_room(engine: Engine, strategy: RoundStrategy, prompts: Prompts, count: int) -> None:
    """Raise ValueError for a text that is longer than the cache or a model's context."""
    positions = engine.pair.context(strategy.reads_slm, strategy.reads_llm)
    longest = max(map(len, prompts.ids))
    if longest + count > positions:
        raise ValueError(
            f"input_ids has {longest} tokens, with max_new_tokens={count} that is "
            f"{longest + count} positions, but the pair has {positions} (max_seq_len, at most the "
            "models' context)"
        )
