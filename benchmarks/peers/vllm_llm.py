"""vLLM's offline `LLM`, plain and with the SLM as draft model; written for 0.33."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers import base, card

NAME = "vllm"


def missing(place: Place) -> str | None:
    """Anywhere but on the first card, and where it is not installed."""
    if place.device.startswith("cuda") and place.device not in ("cuda", "cuda:0"):
        return "runs on the first card alone: set CUDA_VISIBLE_DEVICES"
    return base.only_on("cuda", place) or base.lacking("vllm", "vllm")


def contenders(pair: Pair, place: Place, scratch: Path, most: int = 1) -> Iterator[Contender]:
    """The LLM alone, then, in an engine of its own, with the SLM's drafts."""
    yield VLLM(NAME, pair, place, most)
    if pair.slm is not None:
        yield VLLM(f"{NAME} assisted", pair, place, most, pair.slm)


class VLLM(base.LLMWriter):
    """An engine with just the memory that the pair's texts need, and no cache of prompts."""

    def __init__(
        self, name: str, pair: Pair, place: Place, batch: int, slm: str | None = None
    ) -> None:
        from vllm import LLM

        self.name, self.batch = name, batch
        dtype = base.dtype_of(pair, place)
        self.options = base.options(dtype)
        drafts: dict[str, Any] = {}
        if slm is not None:
            self.options["num_drafts"] = base.NUM_DRAFTS
            drafts["speculative_config"] = {
                "method": "draft_model",
                "model": str(base.folder_of(slm)),
                "num_speculative_tokens": base.NUM_DRAFTS,
            }
        wanted = card.needed(pair, place, batch, slm is not None)
        self._llm: Any = LLM(
            model=str(base.folder_of(pair.llm)),
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=dtype,
            gpu_memory_utilization=card.share(wanted, card.memory(place.device).total),
            max_model_len=base.positions(pair),
            max_num_seqs=batch,
            enable_prefix_caching=False,
            **drafts,
        )

    def write(self, work: Work) -> Written:
        from vllm import SamplingParams, TokensPrompt

        base.check(self, work)
        told = {"temperature": 0.0} if work.is_greedy else base.filters(work)
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in work.prompts],
            SamplingParams(
                max_tokens=work.new_tokens,
                ignore_eos=True,
                detokenize=False,
                seed=None if work.is_greedy else work.seed,
                **told,
            ),
            use_tqdm=False,
        )
        return Written([list(output.outputs[0].token_ids) for output in outputs])

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
