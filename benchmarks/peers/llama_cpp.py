"""llama.cpp, plain and speculating with the SLM, through its server in `xllamacpp`.

The server is called in the process: nothing is sent over a network. It speaks in text, but the
file that `gguf_file` writes names its tokens by their ids, so ids are what is read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers import base
from hybridgen.benchmarks.peers.gguf_file import ids_of, write_gguf

NAME = "llama.cpp"
ORDER = ["temperature", "top_k", "top_p", "min_p"]  # of filters, ours and transformers'
MULTIPLE = 256  # llama.cpp rounds a slot's positions up to it


def missing(place: Place) -> str | None:
    """Where the wheel with the CPU's code is not installed, or the place is a GPU."""
    return base.only_on("cpu", place) or base.lacking("xllamacpp", "xllamacpp gguf")


def contenders(pair: Pair, place: Place, scratch: Path, most: int = 1) -> Iterator[Contender]:
    """The LLM alone with ``most`` slots, then with the SLM's drafts."""
    dtype = base.dtype_of(pair, place)
    llm = converted(pair.llm, dtype, scratch / f"llm-{dtype}.gguf")
    room = base.positions(pair)
    yield LlamaCpp(NAME, llm, place, dtype, room, most)
    if pair.slm is not None:
        slm = converted(pair.slm, dtype, scratch / f"slm-{dtype}.gguf")
        yield LlamaCpp(f"{NAME} assisted", llm, place, dtype, room, most, slm)


def converted(model: str, dtype: str, target: Path) -> Path:
    """The checkpoint as a GGUF file, which is written where it is not there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(base.folder_of(model), target, dtype)
    return target


class LlamaCpp(base.LLMWriter):
    """A server of its own with ``batch`` slots; how much it drafts is its own choice."""

    def __init__(
        self,
        name: str,
        llm: Path,
        place: Place,
        dtype: str,
        room: int,
        batch: int,
        slm: Path | None = None,
    ) -> None:
        import xllamacpp

        self.name, self.batch = name, batch
        params = xllamacpp.CommonParams()
        params.model.path = str(llm)
        params.n_parallel = batch
        params.n_ctx = batch * -(-room // MULTIPLE) * MULTIPLE
        params.n_gpu_layers = 0
        params.verbosity = 0
        params.warmup = False
        params.fit_params = False
        params.cache_prompt, params.cache_ram_mib = False, 0  # no call leaves a thing to the next
        _threads(params, place.threads)
        self.options = base.options(dtype, binding="xllamacpp", built_for=_instructions())
        if slm is not None:
            draft = params.speculative.draft
            draft.mparams.path = str(slm)
            draft.n_gpu_layers = 0
            _threads(draft, place.threads)
            kinds = xllamacpp.common_speculative_type
            params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            self.options["num_drafts"] = draft.n_max
        self._server: Any = xllamacpp.Server(params)

    def write(self, work: Work) -> Written:
        base.check(self, work)
        told = {"temperature": 0.0} if work.is_greedy else base.filters(work)
        answer = self._server.handle_completions(
            {
                "prompt": work.prompts,
                "n_predict": work.new_tokens,
                "cache_prompt": False,
                "seed": work.seed,
                "samplers": ORDER,
                **told,
            }
        )
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp refuses: {answer}")
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return Written([ids_of(choice["text"]) for choice in choices])

    def close(self) -> None:
        self._server = None


def _threads(params: Any, count: int) -> None:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count


def _instructions() -> str:
    """What the binary was compiled for, which a wheel may be behind the processor in."""
    import xllamacpp

    flags = [part.split("=") for part in xllamacpp.get_system_info().split("|") if "=" in part]
    told = [name.split(":")[-1].strip() for name, value in flags if value.strip() == "1"]
    return " ".join(name for name in told if name.startswith(("AVX", "AMX", "NEON", "SVE", "FMA")))
