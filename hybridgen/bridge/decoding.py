"""Where transformers' `generate` would begin to decode."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria

from hybridgen.bridge.engines import Engine, check_model, engine_of
from hybridgen.bridge.inputs import CACHES, asked_by_token, prompts_of, refuse, request_of
from hybridgen.bridge.outputs import Following, Said, dictionary, scored, sequences
from hybridgen.checks import check_int
from hybridgen.engine.loop import Text
from hybridgen.names import Auto, Evidence, StrategyName, Verification, WeightsName
from hybridgen.parameters import SEEDS


def hybrid_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[StoppingCriteria],
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    slm: PreTrainedModel | None = None,
    strategy: StrategyName | None = None,
    num_drafts: int | Auto | None = None,
    verification: Verification | None = None,
    threshold: float | None = None,
    llm_fraction: float | None = None,
    llm_consecutive_tokens: int | None = None,
    evidence: Evidence | None = None,
    reuse: bool | None = None,
    seed: int | None = None,
    max_batch_size: int = 4,
    max_seq_len: int | None = None,
    slm_weights: WeightsName | None = None,
    llm_weights: WeightsName | None = None,
    **model_kwargs: Any,
) -> Any:
    """A decoding method for transformers: ``llm.generate(..., custom_generate=hybrid_generate)``.

        llm.generate(**inputs, custom_generate=hybrid_generate, slm=small, num_drafts=4)

    slm                            the small model; None: drafts are looked up in the text
    strategy, ..., reuse           see `HybridGenerator.generate`
    seed                           row r is drawn with seed + r; None: from torch's generator, so
                                   that `torch.manual_seed` repeats a call
    max_batch_size, max_seq_len    what the cache is made for, see `HybridGenerator`
    slm_weights, llm_weights       "int8": copies of the weights at a byte each, see `accelerate`

    transformers keeps a streamer and the tokenizer, and so stop strings, to itself in such a call:
    `accelerate` has them. Raises ValueError or TypeError, naming the argument, for what is not
    supported.
    """
    llm = check_model("model", model)
    small = None if slm is None else check_model("slm", slm)
    options = {
        "strategy": strategy,
        "num_drafts": num_drafts,
        "verification": verification,
        "threshold": threshold,
        "llm_fraction": llm_fraction,
        "llm_consecutive_tokens": llm_consecutive_tokens,
        "evidence": evidence,
        "reuse": reuse,
    }
    return decode(
        engine_of(llm, small, max_batch_size, max_seq_len, slm_weights, llm_weights),
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        {**model_kwargs, "synced_gpus": synced_gpus},
        options,
        seed,
    )


def decode(
    engine: Engine,
    input_ids: Tensor,
    processors: Any,
    criteria: Sequence[StoppingCriteria],
    config: GenerationConfig,
    model_kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    seed: int | None,
    streamer: Any = None,
) -> Any:
    """What `generate` returns, for what it has prepared; the streamer sees the prompt too."""
    model_kwargs, options = last_call(engine, model_kwargs, options)
    refuse(config, model_kwargs)
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"streamer works with one sequence, got {len(input_ids)}")
    prompts = prompts_of(input_ids, model_kwargs.get("attention_mask"), model_kwargs)
    strategy, request = request_of(
        engine, options, draw(seed), prompts, processors, criteria, config
    )
    wanted = bool(config.output_scores), bool(config.output_logits)
    said = None
    if config.return_dict_in_generate and any(wanted):
        said = Said(request.rows, request.max_new_tokens)
    asked, waits = asked_by_token(criteria), request.rows > 1 and not request.end_ids
    following = Following(input_ids, request.max_new_tokens, asked, streamer, waits)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    pair = engine.pair
    with pair.turn(), torch.inference_mode(), torch.autocast(pair.llm.device.type, enabled=False):
        observe = None if said is None else said.observe
        batch, program = strategy.prepare(pair, request, observe)
        ended = nothing if said is None else said.ended
        texts = strategy.write(pair, batch, program, request, [following], ended)
        kept = following.lengths
        strategy.leave(pair, batch, request, texts, kept)
    ids = sequences(input_ids, texts, kept, config._pad_token_tensor)
    if not config.return_dict_in_generate:
        return ids
    scores = logits = None
    if said is not None:
        scores, logits = scored(ids, prompts.width, said.logits(kept), processors, wanted)
    return dictionary(ids, scores, logits, LastCall(engine, max(ids.shape[1] - 1, 0)))


class LastCall:
    """What stands in outputs for the cache: passed to the next call, that is one with ``reuse``.

    It holds no keys and values. The engine does, of its last call alone, and compares tokens.
    """

    def __init__(self, engine: Engine, positions: int) -> None:
        self.engine, self.positions = weakref.ref(engine), positions

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that have been read, as transformers' caches tell it."""
        return self.positions


def last_call(
    engine: Engine, model_kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Arguments without a `LastCall` for a cache, and the options it asks for."""
    left = {}
    for name, value in model_kwargs.items():
        if not (name in CACHES and isinstance(value, LastCall)):
            left[name] = value
        elif value.engine() is not engine:
            raise ValueError(
                f"{name} was returned by other models, or before they or the room for their cache "
                "changed"
            )
        else:
            options = {**options, "reuse": True}
    return left, options


def nothing(text: Text) -> None:
    """Of a text that has ended."""


def draw(seed: int | None) -> int:
    """The seed of the first row."""
    if seed is None:
        return int(torch.randint(SEEDS - 1, (), dtype=torch.int64, device="cpu"))
    return check_int("seed", seed, 0, SEEDS - 1)
