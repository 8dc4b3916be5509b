"""transformers' `generate`: plain, assisted by the SLM, prompt lookup, static cache, compiled.

The checkpoint's generation defaults are put aside, so that what is asked for is what is done. No
token ends a text, and none is forbidden: the configuration that is used has no eos.
"""

from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import torch
from transformers import AutoModelForCausalLM, CompileConfig, GenerationConfig, PreTrainedModel

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers.base import LLMWriter, check, dtype_of, filters, folder_of, options

NAME = "transformers"
LOOKUP = {"prompt_lookup_num_tokens": 10}
STATIC = {"cache_implementation": "static"}
PAD = 0  # beside the text, where the mask hides it


def missing(place: Place) -> str | None:
    """Nothing: hybridgen stands on it."""
    return None


def contenders(pair: Pair, place: Place, scratch: Path, most: int = 1) -> Iterator[Contender]:
    """Its ways to write; they share one copy of the weights."""
    dtype = dtype_of(pair, place)
    if place.device == "cpu":
        torch.set_num_threads(place.threads)
    llm = load(pair.llm, dtype, place.device)
    yield Generate(NAME, llm, most)
    if pair.slm is not None:
        slm = load(pair.slm, place.slm_dtype or dtype, place.device)
        yield Generate(f"{NAME} assisted", llm, 1, assistant=slm)
    yield Generate(f"{NAME} lookup", llm, 1, LOOKUP)
    yield Generate(f"{NAME} static", llm, most, STATIC | {"disable_compile": True})
    if not_compiled(place) is None:
        yield Generate(f"{NAME} compiled", llm, most, STATIC | {"compile_config": compiling(place)})


def not_compiled(place: Place) -> str | None:
    """Why nothing can be compiled there, and what to do."""
    if place.device == "cpu" and not any(map(which, ("g++", "c++", "clang++"))):
        return "torch.compile needs a C++ compiler on a CPU: install g++"
    return None


def compiling(place: Place) -> CompileConfig:
    """As `generate` compiles by default on a GPU; on a CPU there are no graphs to replay."""
    if place.device.startswith("cuda"):
        return CompileConfig()
    config = CompileConfig(mode="default")
    config._compile_all_devices = True  # type: ignore[assignment]
    return config


def load(model: str, dtype: str, device: str) -> PreTrainedModel:
    """The model without generation defaults of its own."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder_of(model), dtype=getattr(torch, dtype)
    )
    loaded.generation_config = GenerationConfig()
    loaded.eval().to(device)
    return loaded


class Generate(LLMWriter):
    """`generate` with some of its options.

    configured   for the generation configuration of each call
    assistant    the SLM; its own way to choose how much it drafts is left as it is
    """

    def __init__(
        self,
        name: str,
        llm: PreTrainedModel,
        batch: int,
        configured: dict[str, Any] | None = None,
        assistant: PreTrainedModel | None = None,
    ) -> None:
        self.name, self.batch = name, batch
        self._llm: PreTrainedModel | None = llm
        self._assistant = assistant
        self._configured = configured or {}
        told = {
            key: value
            for key, value in self._configured.items()
            if isinstance(value, (int, str)) and key != "disable_compile"
        }
        self.options = options(llm.dtype, **told)

    def write(self, work: Work) -> Written:
        check(self, work)
        assert self._llm is not None
        torch.manual_seed(work.seed)
        prompts, mask = padded(work.prompts)
        device = self._llm.device
        generate: Any = self._llm.generate
        written = generate(
            prompts.to(device),
            attention_mask=mask.to(device),
            generation_config=self._config(work),
            assistant_model=self._assistant,
        )
        return Written(written[:, prompts.shape[1] :].tolist())

    def _config(self, work: Work) -> GenerationConfig:
        how = {"do_sample": False} if work.is_greedy else {"do_sample": True, **filters(work)}
        # What is not told here is as the checkpoint recommends.
        return GenerationConfig(
            max_new_tokens=work.new_tokens,
            pad_token_id=PAD,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **how,
            **self._configured,
        )

    def close(self) -> None:
        self._llm = self._assistant = None


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with padding at the left, and their mask: [B, longest], int64."""
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    return (
        torch.tensor([[PAD] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]),
        torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps]),
    )
