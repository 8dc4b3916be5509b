"""What the LLM has read of a row stays as it was read: catching up reads what is new alone.

Bits of a prompt may differ from those of the same tokens fed one by one, so a row that were read
again because of the rows beside it would depend on them.
"""

import pytest
import torch
from conftest import random_model

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.strategies.routing import Routed, catch_up_round, llm_round

LENGTHS = [40, 30, 35]
CACHED = [20, 29, 12]  # tokens that the LLM has read of each row
MARK = 0.125  # in the place of all keys and values that were read before


@pytest.fixture
def batch() -> Batch:
    """Three rows, of which the first two are routed; the third is not, and far behind."""
    slm, llm = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    made = Pair(Decoder.from_model(slm), Decoder.from_model(llm), 3, 100).batch(3)
    prompts = [[(7 * i + row) % 384 for i in range(n)] for row, n in enumerate(LENGTHS)]
    made.rows.load(prompts, [90, 90, 90], [1, 2, 3], (0.0, 0, 1.0, 0.0), [])
    made.routing.load(made.rows, 0.0, 0.0)
    made.routing.routed.copy_(torch.tensor([True, True, False]))
    made.routing.llm_cached.copy_(torch.tensor(CACHED))
    llm_cache(made).fill_(MARK)
    return made


def llm_cache(batch: Batch) -> torch.Tensor:
    """[layers, 2, heads, rows, positions, head_dim]"""
    cache: torch.Tensor = batch.llm.cache  # type: ignore[attr-defined]
    return cache


def read(batch: Batch, row: int) -> list[int]:
    """Positions of ``row`` whose keys and values were written, below its first length."""
    changed = (llm_cache(batch)[:, :, :, row] != MARK).flatten(0, 2).any(2).any(0)
    return changed.nonzero()[:, 0].tolist()


def test_a_catch_up_reads_from_where_the_llm_was(batch: Batch) -> None:
    catch_up_round(batch, 16)
    assert read(batch, 0) == [*range(20, 36)]
    assert read(batch, 1) == [*range(29, 45)]  # its last token; what lies behind is nobody's
    assert read(batch, 2) == [*range(35, 51)]  # nothing of its own
    assert batch.routing.llm_cached.tolist() == [36, 29, 12]


def test_a_round_reads_the_rest_and_writes_a_token(batch: Batch) -> None:
    catch_up_round(batch, 16)
    llm_cache(batch)[:, :, :, :, 0:36] = MARK
    llm_round(batch, 4)
    assert read(batch, 0) == [*range(36, 40)]
    assert batch.rows.length.tolist() == [41, 31, 35]
    assert batch.routing.llm_cached.tolist() == [40, 30, 12]


def test_the_token_is_that_of_the_rows_own_end(batch: Batch) -> None:
    """Rows end at other columns of the block that is read."""
    for row, length in enumerate(LENGTHS[:2]):
        tokens = batch.rows.tokens[row : row + 1, :length]
        batch.llm.prefill(tokens[:, : CACHED[row]], [CACHED[row]], [row])
    Routed(lambda: None, batch, 1).write(20)
    written = [int(batch.rows.tokens[row, LENGTHS[row]]) for row in (0, 1)]
    for row, length in enumerate(LENGTHS[:2]):
        tokens = batch.rows.tokens[row : row + 1, :length]
        batch.llm.prefill(tokens, [length - 1])
        logits = batch.llm(tokens[:, -1:], torch.tensor([length - 1]))
        assert written[row] == int(logits[0, -1].argmax())
