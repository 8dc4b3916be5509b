"""OpenVINO GenAI's LLMPipeline on a CPU, plain and with the SLM as its draft model.

Both run with paged attention, which is what drafts need and what takes rows of unequal lengths.
With a draft model the texts that OpenVINO 2026.4 draws are not the LLM's (mean log-likelihood -3.2
nats where the LLM's own have -1.1, and tokens that top-k does not leave): it is asked for greedy
text alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers import base
from hybridgen.benchmarks.peers.openvino_model import write_openvino
from hybridgen.benchmarks.peers.transformers_generate import padded

NAME = "openvino"
HINTS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}  # what it computes in


def missing(place: Place) -> str | None:
    """Where it is not installed, the place is a GPU, or there is one thread."""
    if place.threads == 1:
        return "OpenVINO 2026.4 dies of a floating point exception with one thread: take two"
    return (
        base.only_on("cpu", place)
        or base.lacking("openvino_genai", "openvino-genai")
        or base.lacking("openvino_tokenizers", "openvino-genai")
    )


def contenders(pair: Pair, place: Place, scratch: Path, most: int = 1) -> Iterator[Contender]:
    """The LLM alone, then with the SLM's drafts."""
    dtype = base.dtype_of(pair, place)
    llm = converted(pair.llm, scratch / "openvino-llm")
    end = base.config_of(pair.llm).vocab_size
    yield OpenVINO(NAME, llm, place, dtype, end, most)
    if pair.slm is not None:
        slm = converted(pair.slm, scratch / "openvino-slm")
        yield OpenVINO(f"{NAME} assisted", llm, place, dtype, end, most, slm)


def converted(model: str, target: Path) -> Path:
    """The checkpoint in OpenVINO's form, which is written where it is not there."""
    if not target.exists():
        unfinished = target.with_name(target.name + ".part")
        unfinished.mkdir(parents=True, exist_ok=True)
        write_openvino(base.folder_of(model), unfinished)
        _write_tokenizer(base.folder_of(model), unfinished)
        unfinished.rename(target)
    return target


def _write_tokenizer(folder: Path, target: Path) -> None:
    """The pipeline asks for one, though ids are what it is given."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    there, back = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(there, target / "openvino_tokenizer.xml")
    openvino.save_model(back, target / "openvino_detokenizer.xml")


class OpenVINO(base.LLMWriter):
    """A pipeline without a cache of prompts; its end of text is an id that no token has."""

    def __init__(
        self,
        name: str,
        llm: Path,
        place: Place,
        dtype: str,
        end: int,
        batch: int,
        slm: Path | None = None,
    ) -> None:
        import openvino_genai

        self.name, self.batch = name, batch
        self.options = base.options(dtype)
        self._end = end
        how: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": place.threads,
            "INFERENCE_PRECISION_HINT": HINTS[dtype],
            "KV_CACHE_PRECISION": HINTS[dtype],  # by default 8 bits, which is other work
        }
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = batch * base.MOST_POSITIONS  # prompts are not split
        drafts: dict[str, Any] = {}
        self._num_drafts = 0
        self.samples = slm is None
        if slm is not None:
            self._num_drafts = self.options["num_drafts"] = base.NUM_DRAFTS
            drafts["draft_model"] = openvino_genai.draft_model(str(slm), "CPU", **how)
        self._pipeline: Any = openvino_genai.LLMPipeline(
            str(llm), "CPU", scheduler_config=scheduler, **drafts, **how
        )

    def write(self, work: Work) -> Written:
        import openvino
        import openvino_genai

        base.check(self, work)
        prompts, mask = padded(work.prompts)
        inputs = openvino_genai.TokenizedInputs(
            *(openvino.Tensor(np.ascontiguousarray(each.numpy())) for each in (prompts, mask))
        )
        return Written(
            [list(row) for row in self._pipeline.generate(inputs, self._config(work)).tokens]
        )

    def _config(self, work: Work) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = work.new_tokens
        config.ignore_eos = True
        config.set_eos_token_id(self._end)
        config.do_sample = not work.is_greedy
        config.rng_seed = work.seed
        if self._num_drafts:
            config.num_assistant_tokens = self._num_drafts
        if not work.is_greedy:
            told = base.filters(work)
            config.temperature, config.top_p = told["temperature"], told["top_p"]
            if told["top_k"]:
                config.top_k = told["top_k"]
            config.min_p = told["min_p"]
        return config

    def close(self) -> None:
        self._pipeline = None
