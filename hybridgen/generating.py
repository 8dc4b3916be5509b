"""`HybridGenerator.generate`: check the request, run a strategy, print the statistics."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch

from hybridgen.checks import check_choice, quoted, shown
from hybridgen.engine.checkpoint import end_ids
from hybridgen.engine.opening import Runs
from hybridgen.engine.pair import Pair, one_at_a_time
from hybridgen.engine.sampling import Sampling
from hybridgen.fields import Facts, merged
from hybridgen.names import Auto, Evidence, StrategyName, Verification
from hybridgen.parameters import FIELDS, Streamer, takes_text
from hybridgen.processors import Processor
from hybridgen.prompts import AnyPrompt, Array, EncodedPrompt, OnePrompt, Prompt, Prompts
from hybridgen.recommendations import (
    SOURCE,
    not_applied,
    processing_defaults,
    sampling_defaults,
)
from hybridgen.request import Request, check_request, refuse_for_custom
from hybridgen.result import GenerationResult, ends_inside_a_line
from hybridgen.strategies.base import Strategy
from hybridgen.strategies.custom import Custom, GenerationStrategy


class Generating:
    """What writes: a pair of models, their tokenizer, and the strategies by name.

    device        of the LLM, and of the SLM where it was not loaded elsewhere
    slm, llm      the decoders; without an SLM drafts are looked up in the text
    """

    _told = False  # whether a warning has named what is not applied

    device: torch.device
    tokenizer: Any
    slm: Runs | None
    llm: Runs
    pair: Pair
    strategies: dict[str, Strategy | GenerationStrategy]

    @overload
    def generate(
        self,
        prompt: OnePrompt,
        strategy: StrategyName | str = ...,
        max_new_tokens: int = ...,
        temperature: float | None = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        *,
        num_drafts: int | Auto = ...,
        verification: Verification | None = ...,
        threshold: float | None = ...,
        llm_fraction: float | None = ...,
        llm_consecutive_tokens: int = ...,
        evidence: Evidence = ...,
        repetition_penalty: float | None = ...,
        no_repeat_ngram_size: int | None = ...,
        min_new_tokens: int | None = ...,
        suppress_tokens: Sequence[int] | None = ...,
        bad_words_ids: Sequence[Sequence[int]] | None = ...,
        logits_processor: Processor | Sequence[Processor] | None = ...,
        seed: int | Sequence[int] | Array | None = ...,
        stop: str | Sequence[str] | None = ...,
        eos_token_id: int | Sequence[int] | None = ...,
        ignore_eos: bool = ...,
        reuse: bool = ...,
        stream: Callable[[str], object] | Streamer | None = ...,
        print_stats: bool = ...,
        **kwargs: Any,
    ) -> GenerationResult[str, list[int]]: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        strategy: StrategyName | str = ...,
        max_new_tokens: int = ...,
        temperature: float | None = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        *,
        num_drafts: int | Auto = ...,
        verification: Verification | None = ...,
        threshold: float | None = ...,
        llm_fraction: float | None = ...,
        llm_consecutive_tokens: int = ...,
        evidence: Evidence = ...,
        repetition_penalty: float | None = ...,
        no_repeat_ngram_size: int | None = ...,
        min_new_tokens: int | None = ...,
        suppress_tokens: Sequence[int] | None = ...,
        bad_words_ids: Sequence[Sequence[int]] | None = ...,
        logits_processor: Processor | Sequence[Processor] | None = ...,
        seed: int | Sequence[int] | Array | None = ...,
        stop: str | Sequence[str] | None = ...,
        eos_token_id: int | Sequence[int] | None = ...,
        ignore_eos: bool = ...,
        reuse: bool = ...,
        stream: Callable[[int, str], object] | Streamer | None = ...,
        print_stats: bool = ...,
        **kwargs: Any,
    ) -> GenerationResult[list[str], list[list[int]]]: ...

    @overload
    def generate(
        self,
        prompt: EncodedPrompt,
        strategy: StrategyName | str = ...,
        max_new_tokens: int = ...,
        temperature: float | None = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        *,
        num_drafts: int | Auto = ...,
        verification: Verification | None = ...,
        threshold: float | None = ...,
        llm_fraction: float | None = ...,
        llm_consecutive_tokens: int = ...,
        evidence: Evidence = ...,
        repetition_penalty: float | None = ...,
        no_repeat_ngram_size: int | None = ...,
        min_new_tokens: int | None = ...,
        suppress_tokens: Sequence[int] | None = ...,
        bad_words_ids: Sequence[Sequence[int]] | None = ...,
        logits_processor: Processor | Sequence[Processor] | None = ...,
        seed: int | Sequence[int] | Array | None = ...,
        stop: str | Sequence[str] | None = ...,
        eos_token_id: int | Sequence[int] | None = ...,
        ignore_eos: bool = ...,
        reuse: bool = ...,
        stream: Callable[..., object] | Streamer | None = ...,
        print_stats: bool = ...,
        **kwargs: Any,
    ) -> GenerationResult: ...

    @one_at_a_time
    def generate(
        self,
        prompt: AnyPrompt,
        strategy: StrategyName | str = "speculative",
        max_new_tokens: int = 200,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        *,
        num_drafts: int | Auto = "auto",
        verification: Verification | None = None,
        threshold: float | None = None,
        llm_fraction: float | None = None,
        llm_consecutive_tokens: int = 1,
        evidence: Evidence = "probs",
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        min_new_tokens: int | None = None,
        suppress_tokens: Sequence[int] | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
        logits_processor: Processor | Sequence[Processor] | None = None,
        seed: int | Sequence[int] | Array | None = None,
        stop: str | Sequence[str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        ignore_eos: bool = False,
        reuse: bool = False,
        stream: Callable[..., object] | Streamer | None = None,
        print_stats: bool = True,
        **kwargs: Any,
    ) -> GenerationResult:
        """Continue ``prompt``.

        prompt                   a string, token ids, chat messages, a tokenizer's output with its
                                 attention mask, or a list of strings, ids or chats, of any length:
                                 at most ``max_batch_size`` are written at once. See `Prompt`
        strategy                 a name in ``self.strategies``
        max_new_tokens           the most tokens to write
        temperature, top_k,      applied in this order; 0, 0, 1 and 0 turn them off (temperature 0
        top_p, min_p             is greedy); None: the LLM's generation config, else off
        num_drafts               speculative: tokens drafted a round, 1 to 15, or "auto": as many as
                                 pay by the times measured, by the SLM or a lookup, or none
        verification             speculative: "rejection" (the LLM's distribution) or "coupled" (the
                                 LLM's own tokens for this seed); None: coupled with "auto", whose
                                 rejections could not be repeated by the seed alone
        threshold                routing: metric above which the LLM writes the next token
        llm_fraction             routing, instead: the share of tokens the LLM is to write
        llm_consecutive_tokens   routing: how many tokens the LLM then writes, 1 to 16
        evidence                 uncertainty: "probs" or "logits" (see `hybridgen.utils`)
        repetition_penalty       above 1, what the text holds already becomes less likely; this and
                                 the next ones mean what they mean in transformers, apply to both
                                 models, and left at None are the LLM's generation config's
        no_repeat_ngram_size     no sequence of so many tokens is written twice
        min_new_tokens           no eos before so many tokens
        suppress_tokens          ids that are never written
        bad_words_ids            sequences of ids that are never written, a list of lists
        logits_processor         a function (ids [1, T], scores [1, V] float32) -> scores, or a list
                                 of them, called for each row and token, drafts too: what it returns
                                 may depend on its arguments alone. Its rounds are not captured
        seed                     an int s gives row r the seed s + r; or one int a row; None: drawn
        stop                     a string or strings before which the text ends
        eos_token_id             one id or several; None: the LLM's own. ``ignore_eos`` writes on
        reuse                    do not read again what the last call left in the cache, as far as
                                 the prompts' tokens are the same row by row: for the next turn of
                                 a conversation. Written tokens are then kept as they were computed
                                 one by one, which may round otherwise than reading them would
        stream                   a callable, stream(piece), or stream(row, piece) for a list of
                                 prompts; or a transformers streamer, for one prompt
        print_stats              print the statistics block to stdout, on a line of its own
        **kwargs                 a custom strategy's own options; any keyword for one that declares
                                 none; an error for the built-in ones

        Raises ValueError or TypeError, naming the argument, before any model runs; the generator
        stays usable. Raises ValueError if a model computes NaN. Calls from several threads wait for
        each other; one from inside another, such as from its stream, raises RuntimeError. Warns
        once, in the first call, of what the LLM's generation config asks for and hybridgen does not
        apply.
        """
        given = dict(locals())  # every argument by its name
        del given["self"], given["prompt"], given["kwargs"]
        chosen = self._choose(strategy)
        request = self._checked(chosen, prompt, given, kwargs)
        self._tell_what_is_not_applied(chosen)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            if isinstance(chosen, GenerationStrategy):
                refuse_for_custom(request)
                chosen = Custom(request.strategy, chosen, {"prompt": prompt, **kwargs})
            result = chosen.run(self.pair, request, self.tokenizer)
        result = result if request.is_batch else result.single()
        if print_stats:
            if takes_text(stream) and ends_inside_a_line(result.text):
                print()  # most streams of text print it: the block begins a line
            print(result.summary)
        return result

    def _checked(
        self, chosen: Any, prompt: Any, given: Mapping[str, Any], others: Mapping[str, Any]
    ) -> Request:
        """The request of a call: ``given`` are the arguments of `generate`, by name."""
        most = None if isinstance(chosen, Strategy) else self.pair.max_rows
        rows = Prompt(self.tokenizer, prompt, most)
        facts = self._facts(chosen, rows, given)
        if chosen.declaration is None:
            return check_request(rows, given, facts)
        fields = merged(FIELDS, chosen.declaration.options)
        return check_request(rows, {**given, **others}, facts, fields)

    @property
    def _recommended(self) -> Any:
        """The LLM's generation config; None where it has none."""
        return getattr(self.llm, "generation_config", None)

    def _tell_what_is_not_applied(self, chosen: Any) -> None:
        """Warn of the LLM's recommendations that are not followed, in the first call."""
        asked = {} if self._told else not_applied(self._recommended)
        if not isinstance(chosen, Strategy) and not self._told:  # it draws from logits itself
            asked |= processing_defaults(self._recommended, self.pair.vocab_size)
        self._told = True
        if asked:
            fields = ", ".join(f"{name}={quoted(value)}" for name, value in asked.items())
            who = "hybridgen" if isinstance(chosen, Strategy) else "this strategy"
            warnings.warn(
                f"{SOURCE} asks for {fields}, which {who} does not apply",
                UserWarning,
                stacklevel=4,  # the caller of `generate`, beyond its turn
            )

    def _choose(self, name: Any) -> Strategy | GenerationStrategy:
        """The strategy of this name."""
        chosen = self.strategies[check_choice("strategy", name, self.strategies)]
        if not isinstance(chosen, (Strategy, GenerationStrategy)):
            where = f"strategies[{quoted(name)}]"
            raise TypeError(f"{where} must be a GenerationStrategy instance, got {shown(chosen)}")
        if isinstance(chosen, Strategy) and chosen.reads_slm and self.slm is None:
            raise ValueError(
                f"strategy={quoted(name)} runs an SLM, and the generator has none: give it an "
                "slm_model_id beside the llm_model_id"
            )
        return chosen

    def _facts(self, chosen: Any, prompt: Prompt, given: Mapping[str, Any]) -> Facts:
        """What the checks of a call may need to know."""
        asked = {name: given[name] for name in Sampling._fields}
        recommended = sampling_defaults(self._recommended, **asked)
        vocab_size = min(model.vocab_size for model in (self.slm, self.llm) if model is not None)
        if isinstance(chosen, Strategy):
            recommended |= processing_defaults(self._recommended, vocab_size)
        return Facts(
            prompt.rows,
            vocab_size=vocab_size,
            max_positions=self.pair.context(
                *(getattr(chosen, name, True) for name in ("reads_slm", "reads_llm"))
            ),
            defaults={**recommended, "eos_token_id": self._default_eos()},
            is_batch=prompt.is_batch,
        )

    def _default_eos(self) -> tuple[int, ...]:
        """The LLM's eos ids; those of its generation config win over its tokenizer's."""
        ids = getattr(self._recommended, "eos_token_id", None)
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return end_ids(ids, "the LLM's eos_token_id")
