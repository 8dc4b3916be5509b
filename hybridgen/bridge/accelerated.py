"""A model of transformers with a `generate` of ours."""

import inspect
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from hybridgen.bridge.decoding import decode
from hybridgen.bridge.engines import check_model, engine_of
from hybridgen.bridge.inputs import OPTIONS, choose
from hybridgen.checks import quoted, shown
from hybridgen.names import Auto, Evidence, StrategyName, Verification, WeightsName
from hybridgen.parameters import Streamer, is_streamer

if TYPE_CHECKING:
    from typing_extensions import Unpack

OWN = ("strategy", *(field.name for field in OPTIONS))


class Options(TypedDict, total=False):
    """A strategy by name and its options, see `HybridGenerator.generate`."""

    strategy: StrategyName | None
    num_drafts: int | Auto | None
    verification: Verification | None
    threshold: float | None
    llm_fraction: float | None
    llm_consecutive_tokens: int | None
    evidence: Evidence | None
    reuse: bool | None


def accelerate(
    llm: PreTrainedModel,
    slm: PreTrainedModel | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_batch_size: int = 4,
    max_seq_len: int | None = None,
    slm_weights: WeightsName | None = None,
    llm_weights: WeightsName | None = None,
    **options: "Unpack[Options]",
) -> "Accelerated":
    """``llm`` with a faster `generate`: ``fast.generate(...)`` for ``llm.generate(...)``.

    llm, slm         loaded transformers models; their weights are shared. Without ``slm`` drafts
                     are looked up in the text
    tokenizer        for stop strings, where a call does not give one
    max_batch_size   rows that are written at once; a call may have more
    max_seq_len      most tokens of a row, prompt included; None: the LLM's context, or 4,096 where
                     it is longer. The cache is allocated for these, once for a pair
    slm_weights,     "int8": the products' weights are copied at a byte each, for speed; the models
    llm_weights      keep their own, and what changes in them afterwards is not seen
    **options        defaults of the calls: ``strategy`` and its options, see
                     `HybridGenerator.generate`

    Raises ValueError or TypeError, naming the argument.
    """
    room = max_batch_size, max_seq_len, slm_weights, llm_weights
    return Accelerated(llm, slm, tokenizer, *room, options)


class Accelerated:
    """What `accelerate` returns: `generate` is ours, everything else is the LLM's.

    What is set on it is set on the LLM, and a method that returns the LLM returns this.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        slm: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        max_batch_size: int,
        max_seq_len: int | None,
        slm_weights: WeightsName | None,
        llm_weights: WeightsName | None,
        options: Options,
    ) -> None:
        own = vars(self)
        own["_llm"] = check_model("llm", llm)
        own["_slm"] = None if slm is None else check_model("slm", slm)
        room = max_batch_size, max_seq_len, slm_weights, llm_weights
        own["_tokenizer"], own["_room"] = tokenizer, room
        own["_options"] = options
        choose(engine_of(llm, slm, *room), options)

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["_llm"], name)
        return self._instead(value) if inspect.ismethod(value) else value

    def _instead(self, method: Any) -> Any:
        """``method``, which gives this where it gives the LLM: so that calls can be chained."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self if result is self._llm else result

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._llm, name, value)

    def __reduce__(self) -> Any:
        own = (self._llm, self._slm, self._tokenizer, *self._room, self._options)
        return Accelerated, own

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The LLM's: who asks what kind of model this is, as pipelines do, gets its answer."""
        return type(vars(self)["_llm"])

    def __repr__(self) -> str:
        return f"Accelerated({type(self._llm).__name__})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._llm(*args, **kwargs)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        streamer: Streamer | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        stop_strings: str | list[str] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """What ``llm.generate`` takes and returns, and ``strategy`` with its options, ``seed``.

        seed    row r is drawn with seed + r; None: from torch's generator, so that
                `torch.manual_seed` repeats a call

        Raises ValueError or TypeError, naming the argument, before any model runs.
        """
        kwargs |= self._by_name(args)
        streamer = kwargs.pop("streamer", streamer)
        if streamer is not None and not is_streamer(streamer):
            raise TypeError(
                f"streamer must have the methods put() and end(), got {shown(streamer)}"
            )
        try:
            output = self._generate(
                inputs, generation_config, streamer, tokenizer, stop_strings, seed, kwargs
            )
        except BaseException:
            if streamer is not None:
                with suppress(Exception):  # who reads it in another thread waits for its end
                    streamer.end()
            raise
        if streamer is not None:
            streamer.end()
        return output

    def _generate(
        self,
        inputs: Tensor | None,
        config: GenerationConfig | None,
        streamer: Any,
        tokenizer: Any,
        stop_strings: Any,
        seed: int | None,
        kwargs: dict[str, Any],
    ) -> Any:
        for name in ("assistant_model", "custom_generate"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} must not be given to an accelerated model: its assistant is the slm "
                    f"that accelerate was called with, got {shown(kwargs[name])}"
                )
        options = self._options | {name: kwargs.pop(name) for name in OWN if name in kwargs}
        engine = engine_of(self._llm, self._slm, *self._room)
        asked = stop_strings or getattr(config or self._llm.generation_config, "stop_strings", None)
        stop = self._stop(asked, tokenizer)

        def decoding(
            model: Any,
            input_ids: Tensor,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: GenerationConfig,
            **model_kwargs: Any,
        ) -> Any:
            return decode(
                engine,
                input_ids,
                logits_processor,
                StoppingCriteriaList([*stopping_criteria, *stop]),
                generation_config,
                model_kwargs,
                options,
                seed,
                streamer,
            )

        generate: Any = self._llm.generate
        return generate(inputs, config, custom_generate=decoding, stop_strings=None, **kwargs)

    def _by_name(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """What is given to `generate` by position behind the config."""
        names = [*inspect.signature(self._llm.generate).parameters][2:]
        return dict(zip(names, args, strict=False))

    def _stop(self, stop_strings: Any, tokenizer: Any) -> list[StopStringCriteria]:
        if not stop_strings:
            return []
        tokenizer = tokenizer or self._tokenizer
        if tokenizer is None:
            raise ValueError(
                f"stop_strings={quoted(stop_strings)} needs tokenizer=, here or in accelerate()"
            )
        return [StopStringCriteria(stop_strings=stop_strings, tokenizer=tokenizer)]
