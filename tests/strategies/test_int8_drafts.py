"""A draft model with int8 weights leaves the LLM's law as it is: by enumeration of short texts."""

import pytest
from conftest import random_model
from table_decoder import (
    TableDecoder,
    enumerate_law,
    loaded,
    p_value,
    random_table,
    sample_law,
)

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Repeat
from hybridgen.strategies.drafts import SlmDrafts, speculative_round

VOCAB, PROMPT, DEPTH, ROWS = 8, [1, 0, 1], 2, 4000
PLAIN = (1.0, 0, 1.0, 0.0)


@pytest.mark.parametrize("rejection", [True, False], ids=["rejection", "coupled"])
def test_an_int8_draft_leaves_the_llms_law(rejection: bool) -> None:
    draft = Decoder.from_model(random_model(VOCAB, 1, 32, seed=1).bfloat16(), batch_invariant=False)
    draft.quantise()
    table = random_table(VOCAB, seed=0)
    batch = loaded(draft, TableDecoder(table), [PROMPT] * ROWS, DEPTH, PLAIN)
    program = Repeat(batch.round(speculative_round, SlmDrafts(), 2, rejection))
    observed = sample_law(batch, program, PROMPT, DEPTH, VOCAB)
    assert p_value(observed, enumerate_law(table, PROMPT, DEPTH, PLAIN)) > 1e-4
