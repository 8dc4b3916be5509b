"""HybridGenerator: load the pair, and all that is done with it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from hybridgen.checks import check_bool, check_int, exact_list, shown
from hybridgen.engine.loading import Source, choose_sources
from hybridgen.engine.opening import LARGEST, check_sizes, check_weights, look_at
from hybridgen.engine.pair import one_at_a_time
from hybridgen.engine.placement import choose_device, choose_dtype
from hybridgen.engine.tokenizers import choose_tokenizer
from hybridgen.generating import Generating
from hybridgen.named_pairs import advised, models_of
from hybridgen.names import DtypeName, PairName, RoutingMetric, StrategyName, WeightsName
from hybridgen.parameters import FIELDS
from hybridgen.prompts import AnyPrompt, EncodedPrompt, OnePrompt
from hybridgen.strategies import built_in_strategies
from hybridgen.strategies.base import RoundStrategy

if TYPE_CHECKING:  # what the first token does not need is imported by the methods that do
    from hybridgen.profiling.calibrate import Calibration
    from hybridgen.profiling.profile import ProfileResult
    from hybridgen.prompt_file import FileRun


class HybridGenerator(Generating):
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
    slm_weights, llm_weights      "int8": a byte a weight, and a scale an output; None: as in dtype.
                                  The SLM's changes no promise, see docs/exactness.md
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

    def __init__(
        self,
        slm_model_id: Source | None = None,
        llm_model_id: Source | None = None,
        *,
        pair: PairName | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = None,
        dtype: DtypeName | torch.dtype | None = None,
        slm_weights: WeightsName | None = None,
        llm_weights: WeightsName | None = None,
        trust_remote_code: bool = False,
        max_batch_size: int = 4,
        max_seq_len: int | None = None,
    ) -> None:
        check_sizes(max_batch_size, max_seq_len)
        check_weights(slm_weights, llm_weights)
        check_bool("trust_remote_code", trust_remote_code)
        self.device, chosen_dtype = choose_device(device), choose_dtype(dtype)
        sources = choose_sources(*models_of(pair, slm_model_id, llm_model_id))
        with advised(pair):
            looked = look_at(*sources, trust_remote_code, slm_weights, llm_weights)
            self.tokenizer = choose_tokenizer(*sources, tokenizer, trust_remote_code)
        loaded = looked.load(self.device, chosen_dtype, int(max_batch_size), max_seq_len)
        self.slm, self.llm, self.pair = loaded
        self.strategies = built_in_strategies(has_slm=self.slm is not None)

    def calibrate(
        self,
        prompts: AnyPrompt,
        metric: RoutingMetric = "uncertainty",
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
        prompt: OnePrompt | EncodedPrompt,
        max_new_tokens: int = 200,
        strategy: StrategyName | str | None = None,
        threshold: float | None = None,
        routing_metric: RoutingMetric | None = None,
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
        strategy: StrategyName | str = "speculative",
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
                    self.pair.prepare_prompts(chosen.reads_slm, chosen.reads_llm)
