"""CTranslate2's Generator, the LLM alone: its own file form and its own kernels."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers import base

NAME = "ctranslate2"


def missing(place: Place) -> str | None:
    """Where it is not installed."""
    return base.lacking("ctranslate2", "ctranslate2")


def contenders(pair: Pair, place: Place, scratch: Path, most: int = 1) -> Iterator[Contender]:
    """The LLM alone: it has no speculation."""
    import ctranslate2

    device = place.device.split(":")[0]
    dtype = base.dtype_of(pair, place)
    if dtype not in ctranslate2.get_supported_compute_types(device):
        dtype = "float32"
    folder = converted(pair.llm, dtype, scratch / f"ctranslate2-{dtype}")
    yield CTranslate2(folder, place, dtype, most)


def converted(model: str, dtype: str, target: Path) -> Path:
    """The checkpoint in CTranslate2's form, which is written where it is not there."""
    from ctranslate2.converters import TransformersConverter

    if not target.exists():
        folder = str(base.folder_of(model))
        unfinished = target.with_name(target.name + ".part")
        try:
            TransformersConverter(folder).convert(str(unfinished), quantization=dtype, force=True)
        except (ValueError, NotImplementedError) as error:
            raise base.CannotRun(f"{folder}: {error}") from error
        unfinished.rename(target)
    return target


class CTranslate2(base.LLMWriter):
    """Tokens go in by name and come out as ids; an end that no token is ends no text.

    Its draws go on from call to call: a seed is taken when a program starts alone.
    """

    name: str = NAME

    def __init__(self, folder: Path, place: Place, dtype: str, batch: int) -> None:
        import ctranslate2

        device, _, index = place.device.partition(":")
        self.batch = batch
        self.options = base.options(dtype)
        self._names: list[str] = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        self._generator: Any = ctranslate2.Generator(
            str(folder),
            device=device,
            device_index=int(index or 0),
            compute_type=dtype,
            intra_threads=place.threads,
        )

    def write(self, work: Work) -> Written:
        base.check(self, work)
        told = base.filters(work)
        sampled: dict[str, Any] = {"sampling_topk": 1}
        if not work.is_greedy:
            if told["min_p"]:
                raise ValueError("ctranslate2 has no min_p")
            sampled = {
                "sampling_temperature": told["temperature"],
                "sampling_topk": told["top_k"],
                "sampling_topp": told["top_p"],
            }
        results = self._generator.generate_batch(
            [[self._names[id] for id in prompt] for prompt in work.prompts],
            max_length=work.new_tokens,
            end_token=[len(self._names)],
            include_prompt_in_result=False,
            **sampled,
        )
        return Written([result.sequences_ids[0] for result in results])

    def close(self) -> None:
        self._generator = None
