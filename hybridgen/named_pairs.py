"""Pairs of published checkpoints that have one tokenizer, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hybridgen.checks import check_choice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True)
class NamedPair:
    """Two models on the hub.

    slm, llm                 hub ids
    slm_size, llm_size       parameters in billions, as their cards say
    chat                     whether the tokenizer has a chat template
    remark                   one of `REMARKS`, or none
    """

    name: str
    slm: str
    llm: str
    slm_size: float
    llm_size: float
    chat: bool = True
    remark: str = ""

    @property
    def gigabytes(self) -> float:
        """What the weights of both take in bfloat16, in GB; the cache comes on top."""
        return 2 * (self.slm_size + self.llm_size)


REMARKS = {
    "thinks": "writes its thoughts first, unless the template is given enable_thinking=false",
    "gated": "accept its licence on the hub, then `hf auth login`",
    "code": "made for source code",
}
SMOLLM2, QWEN25 = "HuggingFaceTB/SmolLM2-", "Qwen/Qwen2.5-"
QWEN3_SMALL, QWEN3_SMALLER = ("Qwen/Qwen3-1.7B", 1.7), ("Qwen/Qwen3-0.6B", 0.6)
QWEN3_8B, QWEN3_32B = ("Qwen/Qwen3-8B", 8.2), ("Qwen/Qwen3-32B", 32.8)


def _pair(name: str, slm: tuple[str, float], llm: tuple[str, float], remark: str = "") -> NamedPair:
    return NamedPair(name, slm[0], llm[0], slm[1], llm[1], remark=remark)


PAIRS: Mapping[str, NamedPair] = {
    pair.name: pair
    for pair in (
        _pair(
            "smollm2-1.7b", (f"{SMOLLM2}135M-Instruct", 0.135), (f"{SMOLLM2}1.7B-Instruct", 1.71)
        ),
        _pair("qwen2.5-7b", (f"{QWEN25}0.5B-Instruct", 0.49), (f"{QWEN25}7B-Instruct", 7.61)),
        _pair(
            "qwen2.5-coder-7b",
            (f"{QWEN25}Coder-0.5B-Instruct", 0.49),
            (f"{QWEN25}Coder-7B-Instruct", 7.61),
            "code",
        ),
        _pair(
            "llama-3.1-8b",
            ("meta-llama/Llama-3.2-1B-Instruct", 1.23),
            ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
            "gated",
        ),
        _pair("qwen3-8b", QWEN3_SMALLER, QWEN3_8B, "thinks"),
        _pair("qwen3-8b-1.7b", QWEN3_SMALL, QWEN3_8B, "thinks"),
        _pair("qwen3-32b", QWEN3_SMALLER, QWEN3_32B, "thinks"),
        _pair("qwen3-32b-1.7b", QWEN3_SMALL, QWEN3_32B, "thinks"),
    )
}


def models_of(pair: str | None, slm: Any, llm: Any) -> tuple[Any, Any]:
    """The SLM and the LLM: those of the named pair, or those given.

    Raises ValueError for both, and for a name that the table lacks; TypeError for no name at all.
    """
    if pair is None:
        return slm, llm
    found = PAIRS[check_choice("pair", pair, PAIRS)]
    if slm is not None or llm is not None:
        raise ValueError(
            f"pair={pair!r} names both models: leave slm_model_id and llm_model_id out"
        )
    return found.slm, found.llm


@contextmanager
def advised(pair: str | None) -> Iterator[None]:
    """Add to a ValueError what can be done where the models of ``pair`` are not to be had."""
    try:
        yield
    except ValueError as error:
        if pair is None:
            raise
        from huggingface_hub.constants import HF_HUB_CACHE

        found = PAIRS[pair]
        gated = f" ({REMARKS['gated']})" if found.remark == "gated" else ""
        raise ValueError(
            f"pair={pair!r}: {str(error).rstrip('.')}. It is read from the hub or from its cache, "
            f"{HF_HUB_CACHE} (HF_HOME chooses another). Where there is a network, fetch both "
            f"models with `hf download {found.slm}` and `hf download {found.llm}`{gated}, and take "
            "the cache along; or give local folders as slm_model_id and llm_model_id"
        ) from error


def table() -> str:
    """Every pair, aligned, a line each, and what its remarks mean."""
    rows = [("NAME", "SLM", "LLM", "GB", "CHAT", "")]
    for pair in PAIRS.values():
        chat = "yes" if pair.chat else "no"
        rows.append((pair.name, pair.slm, pair.llm, f"{pair.gigabytes:.1f}", chat, pair.remark))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for name, slm, llm, size, *rest in rows:
        left = [cell.ljust(width) for cell, width in zip((name, slm, llm), widths, strict=False)]
        lines.append("  ".join([*left, size.rjust(widths[3]), *rest]).rstrip())
    notes = {"GB": "the weights of both in bfloat16; the cache comes on top", **REMARKS}
    longest = max(map(len, notes))
    return "\n".join([*lines, "", *(f"{name:{longest}}  {note}" for name, note in notes.items())])
