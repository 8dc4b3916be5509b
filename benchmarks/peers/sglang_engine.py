"""SGLang's offline `Engine`, plain and with the SLM's drafts (STANDALONE); written for 0.5.23."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers import base, card

NAME = "sglang"


def missing(place: Place) -> str | None:
    """Anywhere but on a card, and where it is not installed."""
    return base.only_on("cuda", place) or base.lacking("sglang", "sglang")


def contenders(pair: Pair, place: Place, scratch: Path, most: int = 1) -> Iterator[Contender]:
    """The LLM alone, then, in an engine of its own, with the SLM's drafts."""
    yield SGLang(NAME, pair, place, most)
    if pair.slm is not None:
        yield SGLang(f"{NAME} assisted", pair, place, most, pair.slm)


class SGLang(base.LLMWriter):
    """An engine with just the memory that the pair's texts need, and no cache of prompts.

    It takes a seed when it is loaded alone, so a sampled text is not repeated.
    """

    def __init__(
        self, name: str, pair: Pair, place: Place, batch: int, slm: str | None = None
    ) -> None:
        from sglang import Engine

        self.name, self.batch = name, batch
        dtype = base.dtype_of(pair, place)
        self.options = base.options(dtype)
        drafts: dict[str, Any] = {}
        if slm is not None:
            self.options["num_drafts"] = base.NUM_DRAFTS
            drafts = {
                "speculative_algorithm": "STANDALONE",
                "speculative_draft_model_path": str(base.folder_of(slm)),
                "speculative_num_steps": base.NUM_DRAFTS,
                "speculative_eagle_topk": 1,
                "speculative_num_draft_tokens": base.NUM_DRAFTS + 1,  # the token before them counts
            }
        wanted = card.needed(pair, place, batch, slm is not None)
        room = base.positions(pair)
        self._engine: Any = Engine(
            model_path=str(base.folder_of(pair.llm)),
            skip_tokenizer_init=True,
            dtype=dtype,
            base_gpu_id=int(place.device.partition(":")[2] or 0),
            mem_fraction_static=card.share(wanted, card.memory(place.device).free),
            context_length=room,
            max_total_tokens=batch * room,
            max_running_requests=batch,
            disable_radix_cache=True,
            random_seed=0,
            log_level="error",
            **drafts,
        )

    def write(self, work: Work) -> Written:
        base.check(self, work)
        told = {"temperature": 0.0} if work.is_greedy else base.filters(work)
        if told.get("top_k") == 0:
            told["top_k"] = -1  # its word for no such filter
        outputs = self._engine.generate(
            input_ids=work.prompts,
            sampling_params={"max_new_tokens": work.new_tokens, "ignore_eos": True, **told},
        )
        return Written([list(output["output_ids"]) for output in outputs])

    def close(self) -> None:
        self._engine.shutdown()
        self._engine = None
