"""See for yourself that speculation writes what the LLM alone writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hybridgen.checks import check_int, shown
from hybridgen.engine.model import Model
from hybridgen.kernels import philox
from hybridgen.prefix import common_prefix
from hybridgen.prompts import Prompt

if TYPE_CHECKING:
    from hybridgen.generator import HybridGenerator


@dataclass(frozen=True)
class Divergence:
    """The first token at which speculation and the LLM alone differ.

    margin    by how much the LLM preferred its own token, in units of logits
    label     "near-tie" where rounding in the model's dtype explains it, else "bug"
    """

    prompt: int
    mode: str
    num_drafts: int
    position: int
    expected: int
    found: int
    margin: float
    label: str


@dataclass
class ExactnessReport:
    """``compared`` tokens, and every divergence. True when there is none."""

    compared: int = 0
    divergences: list[Divergence] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.divergences

    def __str__(self) -> str:
        head = f"{self.compared} tokens compared, {len(self.divergences)} divergences"
        lines = [
            f"prompt {d.prompt}, {d.mode}, {d.num_drafts} drafts, new token {d.position}: expected "
            f"{d.expected}, found {d.found}: {d.label}, margin {d.margin:.3g}"
            for d in self.divergences
        ]
        return "\n".join([head, *lines])


def verify_exactness(
    generator: "HybridGenerator",
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    num_drafts: Sequence[int] = (1, 4, 8),
    temperature: float = 0.8,
    seed: int = 0,
) -> ExactnessReport:
    """Compare speculation, greedy and coupled at ``temperature``, with the LLM alone.

    Both are promised to be the LLM's own tokens, whatever the drafts, for each of ``num_drafts``.
    Coupled runs use ``seed`` plus the prompt's index. (That ``verification="rejection"`` follows
    the LLM's distribution is a statement about many samples; the test suite proves it.)
    """
    _check_arguments(generator, prompts, num_drafts, seed)
    report = ExactnessReport()
    for index, prompt in enumerate(prompts):
        for mode, heat in (("greedy", 0.0), ("coupled", temperature)):
            common: dict[str, Any] = {
                "max_new_tokens": max_new_tokens,
                "temperature": heat,
                "seed": seed + index,
                "print_stats": False,
            }
            expected = generator.generate(prompt, "llm", **common).tokens
            for count in num_drafts:
                found = generator.generate(
                    prompt, "speculative", num_drafts=count, verification="coupled", **common
                ).tokens
                report.compared += len(expected)
                if found != expected:
                    report.divergences.append(
                        explain(generator, index, prompt, mode, count, expected, found, heat, seed)
                    )
    return report


def _check_arguments(generator: Any, prompts: Any, num_drafts: Any, seed: Any) -> None:
    """What `generate` cannot see. It checks the rest."""
    if not hasattr(generator, "generate"):
        raise TypeError(f"generator must be a HybridGenerator, got {shown(generator)}")
    for name, value in (("prompts", prompts), ("num_drafts", num_drafts)):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be a list, got {shown(value)}")
        if not value:
            raise ValueError(f"{name} must not be empty: nothing would be compared")
    check_int("seed", seed, 0)


def explain(
    generator: "HybridGenerator",
    index: int,
    prompt: str,
    mode: str,
    num_drafts: int,
    expected: list[int],
    found: list[int],
    temperature: float,
    seed: int,
) -> Divergence:
    """Locate the first difference and weigh both tokens by the LLM's scores there."""
    at = common_prefix(expected, found)
    ours, theirs = token_at(expected, at), token_at(found, at)
    margin, tolerance = float("inf"), 0.0
    if ours >= 0 and theirs >= 0:
        prompt_ids = Prompt(generator.tokenizer, prompt).token_ids()[0]
        prefix = prompt_ids + expected[:at]
        scores, tolerance = llm_scores(generator, prefix, temperature, seed + index)
        margin = float(scores[ours] - scores[theirs])
    label = "near-tie" if abs(margin) <= tolerance else "bug"
    return Divergence(index, mode, num_drafts, at, ours, theirs, margin, label)


def token_at(tokens: list[int], index: int) -> int:
    """-1 where the text has ended already: no rounding explains that."""
    return tokens[index] if index < len(tokens) else -1


@torch.inference_mode()
def llm_scores(
    generator: "HybridGenerator", prefix: list[int], temperature: float, seed: int
) -> tuple[torch.Tensor, float]:
    """What the LLM chooses the largest of after ``prefix``, [V], and how far rounding moves it."""
    with generator.pair.turn():
        logits, tolerance = llm_logits(generator.llm, prefix)
    if temperature == 0:
        return logits, tolerance
    ids = np.arange(logits.shape[0])
    noise = torch.from_numpy(philox.gumbel(seed, len(prefix), ids, philox.TARGET))
    return logits + temperature * noise, tolerance


def llm_logits(llm: Model, prefix: list[int]) -> tuple[torch.Tensor, float]:
    """Logits after ``prefix``, float32 [V], and how far rounding moves one.

    A logit is a sum of roundings of relative size eps along a handful of layers; eight eps of the
    largest logit is a generous bound for a tie, and far below the gap between different tokens.
    """
    tokens = torch.tensor([prefix], dtype=torch.int64, device=llm.device)
    with torch.autocast(llm.device.type, enabled=False):  # as in `generate`
        llm.prefill(tokens[:, :-1], [len(prefix) - 1])
        logits = llm(tokens[:, -1:], tokens.new_tensor([len(prefix) - 1]))[0, -1].float().cpu()
    tolerance = 8 * torch.finfo(llm.dtype).eps * float(logits.abs().max())
    return logits, tolerance
