"""One table says what `generate` takes: its signature, its documentation and a request agree."""

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

from hybridgen import HybridGenerator
from hybridgen.engine.sampling import Sampling
from hybridgen.fields import (
    Facts,
    Field,
    choice,
    defaulting,
    flag,
    integer,
    merged,
    number,
    optional,
)
from hybridgen.parameters import FIELDS, SAMPLING
from hybridgen.prompts import Prompt
from hybridgen.request import Request, make_request
from hybridgen.strategies import built_in_strategies
from hybridgen.strategies.declarations import BUILT_IN, THRESHOLDS

TORCH_FREE = (
    "checks",
    "cli",
    "engine.adjustment",
    "engine.sampling",
    "fields",
    "parameters",
    "processors",
    "prompts",
    "recommendations",
    "request",
    "result",
    "strategies.declarations",
)
WINDOW = Field("window", 3, integer(1, 8), "tokens looked back", metavar="N")


def request(*own: Field, **given: Any) -> Request:
    prompt = Prompt(None, [1, 2])
    return make_request(
        prompt, vocab_size=9, max_positions=999, fields=merged(FIELDS, own), **given
    )


def test_the_signature_of_generate_is_the_table() -> None:
    signature = inspect.signature(HybridGenerator.generate).parameters
    assert list(signature) == ["self", "prompt", *(field.name for field in FIELDS), "kwargs"]
    for field in FIELDS:
        default = signature[field.name].default
        assert (default, type(default)) == (field.default, type(field.default))


def test_the_docstring_of_generate_explains_every_parameter() -> None:
    docstring = inspect.getdoc(HybridGenerator.generate)
    assert docstring is not None
    words = set(re.findall(r"\w+", docstring.split("Raises")[0]))
    assert {"prompt", *(field.name for field in FIELDS)} <= words


def test_every_parameter_is_an_attribute_of_the_request() -> None:
    made = request()
    for field in FIELDS:
        getattr(made, field.name)
    assert made.sampling == Sampling()
    with pytest.raises(AttributeError, match="no 'windows'"):
        _ = made.windows
    with pytest.raises(TypeError):
        made.values["num_drafts"] = 5


def test_sampling_is_in_the_order_of_the_kernels_columns() -> None:
    assert tuple(field.name for field in SAMPLING) == Sampling._fields
    assert Sampling(0.0).greedy and not Sampling(0.5).greedy


def test_every_built_in_strategy_has_its_declaration() -> None:
    strategies = built_in_strategies()
    assert [strategies[each.name].declaration for each in BUILT_IN] == list(BUILT_IN)
    assert len(strategies) == len(BUILT_IN)
    assert set(THRESHOLDS) < set(strategies)


def test_checking_a_request_imports_no_torch() -> None:
    modules = "; ".join(f"import hybridgen.{name}" for name in TORCH_FREE)
    code = f"import sys; {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_field_of_ones_own_is_checked_and_has_its_default() -> None:
    assert request(WINDOW).window == 3
    assert request(WINDOW, window=8).window == 8
    with pytest.raises(ValueError, match=r"^window must be an integer from 1 to 8, got 9"):
        request(WINDOW, window=9)
    with pytest.raises(TypeError, match=r"'windw' \(did you mean 'window'\?\); .* window$"):
        request(WINDOW, windw=2)
    with pytest.raises(TypeError, match="unexpected argument 'window'"):
        request(window=2)


def test_a_field_may_exclude_another() -> None:
    span = Field("span", None, optional(integer(1)), "", excludes={"window": "span sets it"})
    assert request(WINDOW, span, span=2).span == 2
    assert request(WINDOW, span, window=2).span is None
    with pytest.raises(ValueError, match=r"^window=2 and span=1 exclude each other: span sets it"):
        request(WINDOW, span, window=2, span=1)


def test_a_table_has_each_name_once_and_as_it_came_last() -> None:
    other = Field("window", 5, integer(1), "")
    last = Field("last", 1, integer(1), "")
    assert merged((WINDOW, last), (other,)) == (other, last)


@pytest.mark.parametrize(
    ("check", "accepted", "refused"),
    [
        (integer(1), 10**9, 0),
        (integer(1, 3), 3, 4),
        (number("a share", lambda x: 0 <= x <= 1), 0.5, 1.5),
        (choice("a", "b"), "b", "c"),
        (flag, True, 1),
        (optional(integer(1)), None, 0),
        (defaulting(integer(1)), 2, 0),
    ],
)
def test_the_checks(check: Any, accepted: object, refused: object) -> None:
    assert check("x", accepted, Facts()) == accepted
    with pytest.raises((TypeError, ValueError), match=r"^x must be"):
        check("x", refused, Facts())


def test_none_becomes_the_calls_own_default_and_is_refused_where_there_is_none() -> None:
    check = defaulting(integer(1))
    assert check("x", None, Facts(defaults={"x": 7})) == 7
    with pytest.raises(TypeError, match=r"^x must be an integer >= 1, got None"):
        check("x", None, Facts(defaults={"y": 7}))
