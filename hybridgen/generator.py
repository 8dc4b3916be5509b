"""HybridGenerator: load the pair, check the request, run a strategy, print the statistics."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from hybridgen.checks import check_bool, check_choice, check_int, exact_list, quoted, shown
from hybridgen.engine.checkpoint import end_ids
from hybridgen.engine.loading import choose_sources
from hybridgen.engine.opening import LARGEST, check_sizes, look_at
from hybridgen.engine.pair import one_at_a_time
from hybridgen.engine.placement import choose_device, choose_dtype
from hybridgen.engine.sampling import Sampling
from hybridgen.engine.tokenizers import choose_tokenizer
from hybridgen.fields import Facts, merged
from hybridgen.named_pairs import advised, models_of
from hybridgen.parameters import FIELDS, takes_text
from hybridgen.prompts import Prompt
from hybridgen.recommendations import (
    SOURCE,
    not_applied,
    processing_defaults,
    sampling_defaults,
)
from hybridgen.request import Request, check_request, refuse_for_custom
from hybridgen.result import GenerationResult, ends_inside_a_line
from hybridgen.strategies import built_in_strategies
from hybridgen.strategies.base import RoundStrategy, Strategy
from hybridgen.strategies.custom import Custom, GenerationStrategy

if TYPE_CHECKING:  # what the first token does not need is imported by the methods that do
    from hybridgen.profiling.calibrate import Calibration
    from hybridgen.profiling.profile import ProfileResult
    from hybridgen.prompt_file import FileRun


class HybridGenerator:
    """A small and a large language model that write text together.

    slm_model_id, llm_model_id    a hub id, a local folder, or a loaded transformers model; neither
                                  given: the embedded pair that ships with the package; the LLM
                                  alone: speculation drafts from the text itself
    pair                          instead: the name of a pair of models on the hub, such as
                                  "qwen3-8b"; see `hybridgen.named_pairs`
    tokenizer                     needed only for loaded models that do not tell where they are
                                  from; compared with each model's own where that can be found
    device                        None: cuda if there is one, else cpu; a loaded model that is on a
                                  card stays there unless a number is given, so that the SLM and
                                  the LLM may be on two
    dtype                         None: bfloat16 on cuda; on cpu, for each model, what is fastest
    trust_remote_code             run code that a checkpoint brings; off unless you turn it on
    max_batch_size, max_seq_len   what the KV cache is allocated for, once; max_seq_len counts the
                                  prompt too and is at most the LLM's context (None: that, or
                                  4,096 where it is longer)

    ``strategies`` is an ordinary dict from name to `GenerationStrategy`; add your own.

    Raises ValueError, naming the argument, for models that cannot be loaded, are not what their
    config says, are spread over devices, cannot roll back their cache, have different tokenizers,
    or do not fit in memory with their cache; TypeError for arguments of another type. What
    arguments, configs and the headers of the weights tell is said before any weights are read.
    Memory that runs out all the same is torch's OutOfMemoryError, which says what took how much.
    """

    _told = False  # whether a warning has named what is not applied

    def __init__(
        self,
        slm_model_id: Any = None,
        llm_model_id: Any = None,
        *,
        pair: str | None = None,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        max_batch_size: int = 4,
        max_seq_len: int | None = None,
    ) -> None:
        check_sizes(max_batch_size, max_seq_len)
        check_bool("trust_remote_code", trust_remote_code)
        self.device, chosen_dtype = choose_device(device), choose_dtype(dtype)
        sources = choose_sources(*models_of(pair, slm_model_id, llm_model_id))
        with advised(pair):
            looked = look_at(*sources, trust_remote_code)
            self.tokenizer = choose_tokenizer(*sources, tokenizer, trust_remote_code)
        loaded = looked.load(self.device, chosen_dtype, int(max_batch_size), max_seq_len)
        self.slm, self.llm, self.pair = loaded
        self.strategies: dict[str, Strategy | GenerationStrategy] = built_in_strategies(
            has_slm=self.slm is not None
        )

    @one_at_a_time
    def generate(
        self,
        prompt: Any,
        strategy: str = "speculative",
        max_new_tokens: int = 200,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        *,
        num_drafts: int | str = "auto",
        verification: str | None = None,
        threshold: float | None = None,
        llm_fraction: float | None = None,
        llm_consecutive_tokens: int = 1,
        evidence: str = "probs",
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        min_new_tokens: int | None = None,
        suppress_tokens: Any = None,
        bad_words_ids: Any = None,
        logits_processor: Any = None,
        seed: Any = None,
        stop: Any = None,
        eos_token_id: Any = None,
        ignore_eos: bool = False,
        reuse: bool = False,
        stream: Any = None,
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

    def calibrate(
        self,
        prompts: Any,
        metric: str = "uncertainty",
        llm_fraction: float = 0.2,
        max_new_tokens: int = 200,
        *,
        confidence: float = 0.95,
        resamples: int = 1000,
        **options: Any,
    ) -> "Calibration":
        """Find the threshold by which the LLM writes ``llm_fraction`` of such texts as these.

        prompts       as of `generate`; the more, the narrower the intervals
        metric        "uncertainty" or "entropy": what is to route
        confidence    of the intervals; ``resamples`` of a bootstrap make them
        **options     the others of `generate`, sampling and ``llm_consecutive_tokens`` among them

        The SLM writes by itself, then with a first threshold, from whose texts the final one is
        taken, and then with that, to measure what it gives. Logits processors apply to the texts,
        but not to the metric that the threshold is taken from: what was achieved shows by how much
        that is off. Raises as `generate` does, and ValueError without an SLM.
        """
        from hybridgen.profiling.calibrate import calibrate

        return calibrate(
            self,
            prompts,
            metric,
            llm_fraction,
            max_new_tokens,
            confidence=confidence,
            resamples=resamples,
            **options,
        )

    def generate_file(
        self,
        prompts: str | PathLike[str],
        results: str | PathLike[str],
        *,
        prepare: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> "FileRun":
        """Continue each of the ``prompts`` of a JSONL file, and add a line for each to ``results``.

        prepare      makes of a prompt, as it stands in the file, the one that is continued
        **options    those of `generate`, but for stream, reuse and print_stats

        What a line is, see `hybridgen.prompt_file`. Prompts that have results are skipped, so that
        a call that was broken off goes on where it was; a last line that it left half-written is
        cut off. Prompt i has the seed s + i of an int s, whenever it is written. Raises as
        `generate` does, naming the line; ValueError for a file of other results.
        """
        from hybridgen.prompt_file import generate_file

        return generate_file(self, prompts, results, prepare, **options)

    @one_at_a_time
    def generate_with_profile(
        self,
        prompt: Any,
        max_new_tokens: int = 200,
        strategy: str | None = None,
        threshold: float | None = None,
        routing_metric: str | None = None,
        enable_routing: bool | None = None,
        llm_fraction: float | None = None,
        print_stats: bool = False,
        **options: Any,
    ) -> "ProfileResult":
        """Continue one ``prompt``, with a record of every token: the text is that of `generate`.

        strategy           None: routing by ``routing_metric`` where a threshold, a fraction or a
                           metric is given or ``enable_routing`` is True, else the SLM alone, whose
                           profile shows which threshold to take
        routing_metric     "uncertainty" or "entropy": what routes, or what the profile shows first
        print_stats        print the profile's summary
        **options          the other arguments of `generate`

        Raises as `generate` does; ValueError too where arguments contradict each other, and for a
        list of prompts.
        """
        from hybridgen.profiling.asked import asked_for
        from hybridgen.profiling.record import profiled, refuse_several, with_rounds

        asked = asked_for(
            self.strategies, strategy, threshold, llm_fraction, routing_metric, enable_routing
        )
        chosen = with_rounds(asked.strategy, self._choose(asked.strategy))
        given = {field.name: field.default for field in FIELDS} | options
        given |= {"strategy": asked.strategy, "max_new_tokens": max_new_tokens}
        given |= {"threshold": threshold, "llm_fraction": llm_fraction, "print_stats": print_stats}
        request = self._checked(chosen, prompt, given, {})
        refuse_several(request)
        self._tell_what_is_not_applied(chosen)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            profile = profiled(self.pair, chosen, request, self.tokenizer, asked.metric)
        if print_stats:
            profile.print_summary()
        return profile

    @one_at_a_time
    def warmup(
        self,
        strategy: str = "speculative",
        batch_sizes: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        """Compile and capture on a GPU, now, what calls of `generate` with ``options`` will use.

        batch_sizes    numbers of prompts; None: every width that the cache has room for

        The first such call would do it otherwise. Shows its progress on a terminal. On a CPU there
        is nothing to prepare. Raises as `generate` does.
        """
        every = range(1, self.pair.max_rows + 1)
        sizes = [*every] if batch_sizes is None else exact_list(batch_sizes)
        if not sizes:
            raise TypeError(f"batch_sizes must be a list of integers, got {shown(batch_sizes)}")
        for size in sizes:
            check_int("batch_sizes", size, 1, LARGEST)
        chosen, widths = self._choose(strategy), {self.pair.width(size) for size in sizes}
        given = {field.name: field.default for field in FIELDS}
        given |= {"strategy": strategy, "max_new_tokens": 1}
        extra = {name: value for name, value in options.items() if name not in given}
        given |= {name: value for name, value in options.items() if name in given}
        for width in sorted(widths, reverse=True):  # the largest first: the others fit its memory
            request = self._checked(chosen, [[0]] * width, given, extra)
            if isinstance(chosen, RoundStrategy):
                with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                    chosen.prepare(self.pair, request)

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
            warnings.warn(
                f"{SOURCE} asks for {fields}, which hybridgen does not apply",
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
