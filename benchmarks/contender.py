"""What is measured: a way to write tokens after prompts. Ours and peers are all of this shape."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Pair:
    """Two checkpoints of one vocabulary.

    slm, llm  folders or hub ids; slm is None where the LLM is alone
    prompts   the set of prompts that suits them: "code", "spec-bench", "random", ...
    facts     what else a result should say, such as the agreement that was built in
    """

    name: str
    slm: str | None
    llm: str
    prompts: str
    facts: dict[str, Any] = field(default_factory=dict)


class Place(NamedTuple):
    """Where models run, and as what.

    device            "cpu", "cuda" or "cuda:0"
    dtype, slm_dtype  a torch dtype's name for the LLM, for the SLM; None: our default
    slm_weights       of our SLM: "int8", or None for those of its dtype; peers have those
    """

    device: str
    dtype: str | None
    threads: int
    slm_dtype: str | None = None
    slm_weights: str | None = None


class Work(NamedTuple):
    """One call: every contender writes exactly ``new_tokens`` after each prompt, eos ignored.

    prompts   [B] lists of ids; a contender that takes one prompt at a time may refuse more
    sampling  {"temperature": 0.0} is greedy; else temperature, top_k, top_p as `generate` takes
    """

    prompts: list[list[int]]
    new_tokens: int
    sampling: dict[str, float]
    seed: int

    @property
    def is_greedy(self) -> bool:
        return self.sampling["temperature"] == 0


class Written(NamedTuple):
    """The new tokens of each prompt, [B] lists of ids, and our statistics; a peer has none."""

    tokens: list[list[int]]
    stats: dict[str, Any] | None = None


class Contender(Protocol):
    """One way to write, its models loaded.

    name     as it stands in tables
    writers  of whom one must have been able to choose each token: ("llm",), ("slm",), or both
    samples  whether what it draws is the writers' at all; else it is asked for greedy text alone
    batch    the most prompts that a call takes
    options  its own, as a result tells them: {"dtype": "bfloat16"}, {"num_drafts": 4}
    """

    name: str
    writers: tuple[str, ...]
    samples: bool
    batch: int
    options: dict[str, Any]

    def promises(self, work: Work) -> str | None:
        """The name of the contender whose text it promises to equal, to the token."""

    def write(self, work: Work) -> Written:
        """Write; returns when the tokens are on the host."""

    def close(self) -> None:
        """Free what it holds; it is not used again."""
