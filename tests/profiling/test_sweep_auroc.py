"""The area under the ROC curve, against its meaning: pairs, counted one by one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridgen.profiling.auroc import auroc

VALUES = st.one_of(
    st.integers(-3, 3).map(float),  # with many ties
    st.floats(allow_nan=False),
)


@given(st.lists(st.tuples(VALUES, st.booleans()), max_size=40))
def test_it_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[float, bool]]) -> None:
    hits, misses = ([v for v, of in rows if of is wanted] for wanted in (True, False))
    found = auroc([v for v, _ in rows], [of for _, of in rows])
    if not hits or not misses:
        assert math.isnan(found)
        return
    right = sum((a > b) + (a == b) / 2 for a in hits for b in misses)
    assert found == pytest.approx(right / (len(hits) * len(misses)), rel=1e-12)


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        auroc([1.0, math.nan], [True, False])
    with pytest.raises(ValueError, match="one array each"):
        auroc(np.zeros(3), [True, False])
