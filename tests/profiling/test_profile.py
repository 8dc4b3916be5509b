"""The numbers of a profile are numpy's, and add up."""

import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_values import profile, profiles, token

from hybridgen.profiling import ProfileResult, TokenProfile
from hybridgen.strategies.declarations import SPECULATIVE

VALUES = st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=30)
ATTRIBUTES = {
    "uncertainty": "aleatoric_uncertainty",
    "epistemic": "epistemic_uncertainty",
    "entropy": "entropy",
}


def of(values: list[float | None], **given: Any) -> ProfileResult:
    return profile([token(i, value=value) for i, value in enumerate(values)], **given)


@pytest.mark.parametrize("metric", ATTRIBUTES)
@given(VALUES, st.lists(st.integers(0, 100) | st.floats(0.01, 100), max_size=5))
def test_the_distribution_is_numpys(metric: str, values: list[Any], shares: list[Any]) -> None:
    attribute = ATTRIBUTES[metric]
    others = dict.fromkeys(ATTRIBUTES.values(), 7.0)
    tokens = [token(i, **{**others, attribute: value}) for i, value in enumerate(values)]
    found = profile(tokens).analyze_distribution(metric, shares)
    measured = np.array([value for value in values if value is not None])
    assert found["count"] == len(measured)
    if not len(measured):
        assert found["mean"] is found["median"] is found["top_10_percent"]["max"] is None
        return
    expected = {name: getattr(np, name)(measured) for name in ("mean", "std", "min", "max")}
    assert {name: found[name] for name in expected} == expected
    assert found["median"] == np.median(measured)
    assert found["percentiles"] == {
        written(share): np.percentile(measured, 100 - share) for share in shares
    }
    top = measured[measured >= np.percentile(measured, 90)]
    assert found["top_10_percent"] == {
        "count": len(top),
        "mean": top.mean(),
        "min": top.min(),
        "max": top.max(),
    }


def written(share: float) -> str:
    return f"top_{int(share) if float(share).is_integer() else repr(share)}%"


def test_the_percentiles_of_the_default_are_named_as_documented() -> None:
    found = of([i / 100 for i in range(101)]).analyze_distribution("uncertainty")
    assert list(found["percentiles"]) == ["top_10%", "top_20%", "top_30%"]
    assert found["percentiles"]["top_10%"] == pytest.approx(0.9)
    assert found["top_10_percent"]["count"] == 11
    assert of([1.0]).analyze_distribution()["count"] == 1
    assert list(of([1.0]).analyze_distribution(None, np.array([5, 12.5]))["percentiles"]) == [
        "top_5%",
        "top_12.5%",
    ]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"metric": "entropie"}, ValueError, ["metric", "'entropie'", "'epistemic'"]),
        ({"metric": 3}, TypeError, ["metric", "3 (int)", "'entropy'"]),
        ({"percentiles": [10, 101]}, ValueError, ["percentiles", "101", "0 to 100"]),
        ({"percentiles": [float("nan")]}, ValueError, ["percentiles", "nan", "0 to 100"]),
        ({"percentiles": ["10"]}, TypeError, ["percentiles", "'10' (str)", "0 to 100"]),
        ({"percentiles": 10}, TypeError, ["percentiles", "10 (int)", "list"]),
    ],
)
def test_a_bad_metric_or_percentile_is_named(given: Any, error: Any, words: list[str]) -> None:
    for profiled in (of([0.5]), of([None])):
        with pytest.raises(error) as caught:
            profiled.analyze_distribution(**given)
        assert all(word in str(caught.value) for word in words), str(caught.value)


@given(VALUES, st.floats(0.001, 1) | st.sampled_from([0.0, 0.5, 1.0]))
def test_the_suggested_threshold_lets_its_share_above_it(values: list[Any], share: float) -> None:
    measured = [value for value in values if value is not None]
    if not measured:
        with pytest.raises(ValueError, match="'uncertainty' was measured at none"):
            of(values).suggest_threshold(share)
        return
    threshold = of(values).suggest_threshold(share)
    wanted = int(np.floor(len(measured) * share + 0.5))
    above = sum(value > threshold for value in measured)
    assert above <= wanted
    assert above + sum(value == threshold for value in measured) >= wanted
    if len({*measured, 0.0}) == len(measured) + 1:  # no two alike: exactly
        assert above == wanted


def test_the_suggested_threshold_takes_the_metric_that_is_asked_for() -> None:
    tokens = [token(i, value=i / 10, entropy=float(9 - i)) for i in range(10)]
    assert profile(tokens).suggest_threshold(0.2) == 0.7
    assert profile(tokens, metric="entropy").suggest_threshold(0.2) == 7
    assert profile(tokens).suggest_threshold(0.2, metric="entropy") == 7
    for bad in (-0.1, 1.5):
        with pytest.raises(ValueError, match="llm_fraction must be a number from 0 to 1"):
            profile(tokens).suggest_threshold(bad)


@given(VALUES, st.integers(0, 12))
def test_the_most_uncertain_tokens_come_first(values: list[Any], n: int) -> None:
    found = of(values).get_high_uncertainty_tokens(n)
    measured = [(-value, i) for i, value in enumerate(values) if value is not None]
    assert [each.position for each in found] == [i for _, i in sorted(measured)[:n]]


def test_of_a_list_that_is_none_of_its_own_the_first_ten_come() -> None:
    profiled = profile([token(i, value=i / 50, entropy=-float(i)) for i in range(50)])
    positions = [each.position for each in profiled.get_high_uncertainty_tokens()]
    assert positions == list(range(49, 39, -1))
    lowest = [each.position for each in profiled.get_high_uncertainty_tokens(2, "entropy")]
    assert lowest == [0, 1]
    with pytest.raises(ValueError, match="n must be an integer >= 0, got -1"):
        profiled.get_high_uncertainty_tokens(-1)


@given(profiles())
def test_counts_by_model_add_up(profiled: ProfileResult) -> None:
    usage = profiled.model_usage
    assert list(usage) == ["slm", "llm", "lookup"]
    assert sum(usage.values()) == len(profiled) == len(list(profiled))
    for metric in ATTRIBUTES:
        parts = [profiled.values(metric, model) for model in usage]
        assert sorted(np.concatenate(parts)) == sorted(profiled.values(metric))


@given(st.lists(profiles(), min_size=1, max_size=3))
def test_several_merge(parts: list[ProfileResult]) -> None:
    parts = [
        replace(part, stats={"strategy": "slm"}, metric="entropy", measured_by="slm")
        for part in parts
    ]
    merged = parts[0].merge(*parts[1:])
    assert merged == ProfileResult.merged(iter(parts))
    assert merged.generated_text == "".join(part.generated_text for part in parts)
    assert [each.position for each in merged] == list(range(len(merged)))
    tokens = [each for part in parts for each in part]
    assert [replace(each, position=0) for each in merged] == [
        replace(each, position=0) for each in tokens
    ]
    thresholds = {part.threshold for part in parts}
    assert merged.threshold == (thresholds.pop() if len(thresholds) == 1 else None)
    assert merged.stats == {"strategy": "slm", "rows": [part.stats for part in parts]}


def test_merged_statistics_fold() -> None:
    row = {
        "strategy": "speculative",
        "total_tokens": 10,
        "elapsed_time": 2.0,
        "tokens_per_second": 5.0,
        "seed": 7,
        **dict.fromkeys(SPECULATIVE.statistics, 4),
        "accepted_per_position": [3, 1],
        "acceptance_rate": 1.0,
    }
    other = {**row, "elapsed_time": 3.0, "num_drafts": 2, "seed": 8, "draft_accepted": 2}
    merged = of([1.0], stats=row).merge(of([2.0], stats=other)).stats
    assert merged["total_tokens"] == 20 and merged["elapsed_time"] == 5.0
    assert merged["tokens_per_second"] == 4.0 and merged["seed"] == [7, 8]
    assert merged["acceptance_rate"] == 6 / 8 and merged["accepted_per_position"] == [6, 2]
    assert "num_drafts" not in merged, "they differ"
    assert merged["rows"] == [row, other]
    fewer = {**other, "accepted_per_position": [3]}
    assert "accepted_per_position" not in of([], stats=row).merge(of([], stats=fewer)).stats
    again = of([1.0], stats=row).merge(of([2.0], stats=other)).merge(of([3.0], stats=row))
    assert again.stats["total_tokens"] == 30


@pytest.mark.parametrize(
    ("field", "value"),
    [("metric", "entropy"), ("measured_by", "llm"), ("stats", {"strategy": "speculative"})],
)
def test_what_is_not_alike_does_not_merge(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match="profiles must share one") as caught:
        of([1.0]).merge(of([1.0], **{field: value}))
    assert {"stats": "strategy"}.get(field, field) in str(caught.value)
    with pytest.raises(ValueError, match="at least one"):
        ProfileResult.merged([])


def test_numbers_of_numpy_and_such_that_are_not_finite_become_plain() -> None:
    profiled = profile(
        [
            token(
                np.int64(3),
                value=np.float32(0.5),
                entropy=float("nan"),
                p=float("inf"),
                accepted=np.bool_(True),
                top_k_probs=np.array([0.5, 0.25], np.float32),
                top_k_ids=np.array([4, 5]),
                top_k_texts=["a", "b"],
            )
        ],
        stats={"a": np.array([1.0, np.nan]), "b": (np.int64(1), {"c": float("-inf")})},
        threshold=float("nan"),
    )
    only = profiled.tokens[0]
    assert (only.entropy, only.p, profiled.threshold) == (None, None, None)
    kinds = {type(each) for each in (only.token_id, only.aleatoric_uncertainty, only.accepted)}
    assert kinds == {int, float, bool}
    assert only.top_k_probs == (0.5, 0.25) and type(only.top_k_probs[0]) is float
    assert profiled.stats == {"a": [1.0, None], "b": [1, {"c": None}]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model_used": "gpt"}, "model_used must be one of"),
        ({"top_k_probs": (float("nan"),)}, "top_k_probs must be finite"),
        ({"top_k_probs": (0.5,), "top_k_ids": (1, 2)}, "top_k_ids must be as many as top_k_probs"),
    ],
)
def test_a_token_of_nonsense_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        token(0, **given)


def test_a_profile_of_nonsense_is_refused() -> None:
    for name, value in (("metric", "epistemic"), ("measured_by", "lookup")):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            of([], **{name: value})
    with pytest.raises(ValueError, match="model must be one of"):
        of([]).values(model="gpt")


def test_a_profile_is_shown_in_a_line() -> None:
    profiled = of([0.5] * 300, stats={"strategy": "profiled_uncertainty"}, threshold=0.25)
    assert repr(profiled) == (
        "ProfileResult(profiled_uncertainty, 300 tokens, metric='uncertainty', threshold=0.25)"
    )
    assert of([]) and not len(of([]))


def test_a_profile_is_a_data_frame() -> None:
    profiled = profile([token(0, "a", 0.5, top_k_probs=(0.5,)), token(1, "b", model_used="llm")])
    frame = profiled.to_dataframe()
    assert list(frame.columns) == [field.name for field in fields(TokenProfile)]
    assert list(frame["token_text"]) == ["a", "b"] and list(frame["model_used"]) == ["slm", "llm"]
    assert frame["entropy"].mean() == 0.5 and frame["top_k_probs"][0] == (0.5,)
    assert len(profile([]).to_dataframe().columns) == len(fields(TokenProfile))


def test_without_pandas_a_data_frame_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        of([0.5]).to_dataframe()


def test_profiles_need_neither_torch_nor_what_draws() -> None:
    code = (
        "import sys\n"
        "from hybridgen.profiling import ProfileResult, TokenProfile\n"
        "from hybridgen.profiling import files, merging, plots, report, summary\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'pandas'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
