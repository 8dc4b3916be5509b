"""What a pair's models say of texts that are there already, token by token.

The texts are read in blocks of at most 16 tokens, as many rows at a time as the pair has: teacher
forcing, through the same `steps.read` as writing. No logits processors apply.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridgen.checks import check_int
from hybridgen.engine.limits import MAX_FEED
from hybridgen.engine.model import Model
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.engine.steps import prefill, read
from hybridgen.kernels.uncertainty import EVIDENCE, entropy, logtoku
from hybridgen.strategies.routing import LOGTOKU_K

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_SLM, _LLM = ("aleatoric", "epistemic", "entropy", "slm_ids"), ("llm_ids", "llm_logprob")


@dataclass(frozen=True)
class Scores:
    """Of the tokens of a text from a first one on; each array is [N]. None: not asked for.

    token_ids      int64: the tokens themselves
    aleatoric      float64: AU of the SLM before the token, as routing measures it
    epistemic      float64: EU of the SLM
    entropy        float64: of the SLM's distribution at temperature 1, in nats
    slm_ids        int64: what the SLM finds likeliest in the token's place
    llm_ids        int64: what the LLM finds likeliest there
    llm_logprob    float64: the LLM's log-probability of the token, at temperature 1 and unfiltered
    """

    token_ids: Ids
    aleatoric: Floats | None = None
    epistemic: Floats | None = None
    entropy: Floats | None = None
    slm_ids: Ids | None = None
    llm_ids: Ids | None = None
    llm_logprob: Floats | None = None


def score(
    pair: Pair,
    texts: Sequence[Sequence[int]],
    first: int | Sequence[int] = 1,
    *,
    slm: bool = True,
    llm: bool = True,
    evidence: str = "probs",
) -> list[Scores]:
    """Read ``texts``, token ids below ``pair.vocab_size``, and tell of each from ``first`` on.

    first       a text's first token that counts, at least 1 and one for each text or for all: what
                is before it is read as a prompt is
    slm, llm    which models read; what the other would say is None
    evidence    of AU, "probs" or "logits"

    Raises ValueError for an SLM that the pair has not, for texts that are longer than the pair has
    positions, and where a model computes NaN; RuntimeError from inside a call of its generator.
    """
    firsts = [first] * len(texts) if isinstance(first, int) else [*first]
    for text, begin in zip(texts, firsts, strict=True):
        check_int("first", begin, 1, len(text))
        check_int("the length of a text", len(text), 1, pair.positions)
    if slm and pair.slm is None:
        raise ValueError("slm=True, but the pair has no SLM")
    told: list[dict[str, list[Tensor]]] = [{} for _ in texts]
    with pair.turn(), torch.inference_mode(), torch.autocast(pair.llm.device.type, enabled=False):
        for begin in range(0, len(texts), pair.max_rows):
            part = slice(begin, begin + pair.max_rows)
            batch = pair.batch(pair.width(len(texts[part])))
            pair.will_write(batch.width, max(map(len, texts[part])))
            _load(batch, texts[part])
            if slm:
                _of_slm(batch, texts[part], firsts[part], EVIDENCE[evidence], told[part])
            if llm:
                _of_llm(batch, texts[part], firsts[part], told[part])
    return [
        Scores(np.array(text[begin:], np.int64), **_arrays(of, slm, llm))
        for text, begin, of in zip(texts, firsts, told, strict=True)
    ]


def _load(batch: Batch, texts: Sequence[Sequence[int]]) -> None:
    """Put the texts into the batch's rows; the rest of them are at rest."""
    batch.rows.rest()
    count = len(texts)
    places, lengths = [*range(count)], [len(text) for text in texts]
    batch.rows.load(texts, lengths, [0] * count, (0.0, 0.0, 1.0, 0.0), (), places)


def _blocks(
    batch: Batch, model: Model, texts: Sequence[Sequence[int]], firsts: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, int]]]]:
    """Logits of ``model`` block by block, as far as they count.

    Yielded are logits [N, V], the tokens [N] that stand there, and of which text how many.
    """
    prefill(batch.rows, model, [begin - 1 for begin in firsts], [*range(len(texts))])
    ends, tokens = [len(text) - 1 for text in texts], batch.rows.tokens
    device = tokens.device
    starts = [begin - 1 for begin in firsts]
    column = torch.arange(MAX_FEED, dtype=torch.int64, device=device)
    while any(start < end for start, end in zip(starts, ends, strict=True)):
        counts = [
            min(max(end - start, 0), MAX_FEED) for start, end in zip(starts, ends, strict=True)
        ]
        # A text that is over, or a row without one, reads behind the end of everything.
        idle = [max(map(len, texts))] * (batch.width - len(texts))
        start = torch.tensor([*starts, *idle], dtype=torch.int64, device=device)
        count = max(counts)
        places = start.unsqueeze(1) + column[:count]
        ids = tokens.gather(1, places.clamp_max(tokens.shape[1] - 1))
        logits = read(batch.rows, model, ids, start, drafted=False)
        inside = [row * count + i for row, n in enumerate(counts) for i in range(n)]
        index = torch.tensor(inside, dtype=torch.int64, device=device)
        there = tokens.gather(1, (places + 1).clamp_max(tokens.shape[1] - 1))
        yield (
            logits.flatten(0, 1).index_select(0, index),
            there.flatten().index_select(0, index),
            [(row, n) for row, n in enumerate(counts) if n],
        )
        starts = [start + n for start, n in zip(starts, counts, strict=True)]


def _of_slm(
    batch: Batch,
    texts: Sequence[Sequence[int]],
    firsts: Sequence[int],
    evidence: int,
    told: Sequence[dict[str, list[Tensor]]],
) -> None:
    for logits, _, counts in _blocks(batch, batch.slm, texts, firsts):
        aleatoric, epistemic = logtoku(logits, LOGTOKU_K, evidence)
        heat = logits.new_ones(len(logits), dtype=torch.float32)
        of = {
            "aleatoric": aleatoric,
            "epistemic": epistemic,
            "entropy": entropy(logits, heat),
            "slm_ids": logits.argmax(-1),
        }
        _tell(told, counts, of)


def _of_llm(
    batch: Batch,
    texts: Sequence[Sequence[int]],
    firsts: Sequence[int],
    told: Sequence[dict[str, list[Tensor]]],
) -> None:
    for logits, tokens, counts in _blocks(batch, batch.llm, texts, firsts):
        logprobs = logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        _tell(told, counts, {"llm_ids": logits.argmax(-1), "llm_logprob": logprobs})


def _tell(
    told: Sequence[dict[str, list[Tensor]]],
    counts: Sequence[tuple[int, int]],
    found: dict[str, Tensor],
) -> None:
    """Hand each text what was found of its tokens."""
    sizes = [n for _, n in counts]
    for name, values in found.items():
        for (row, _), part in zip(counts, values.cpu().split(sizes), strict=True):
            told[row].setdefault(name, []).append(part)


def _arrays(of: dict[str, list[Tensor]], slm: bool, llm: bool) -> dict[str, Any]:
    """One array of each name; of a text without a token that counts, an empty one."""
    names = [*(_SLM if slm else ()), *(_LLM if llm else ())]
    none = [torch.zeros(0, dtype=torch.float32, device="cpu")]
    arrays = {name: torch.cat(of.get(name, none)).numpy() for name in names}
    for name, values in arrays.items():
        if np.isnan(values).any():
            raise ValueError(f"a model computed NaN ({name}): check its weights and dtype")
        arrays[name] = values.astype(np.int64 if name.endswith("ids") else np.float64)
    return arrays
