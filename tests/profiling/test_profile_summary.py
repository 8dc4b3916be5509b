"""The printed summary: as documented, and aligned whatever the tokens are."""

import io
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_values import TEXTS, profile, profiles, token

from hybridgen.profiling import ProfileResult
from hybridgen.profiling.summary import columns_of, shortened

GOLDEN = """\
======================================================================
Profile: profiled_uncertainty
======================================================================
Tokens: 10 | Time: 1.25s | Speed: 8.00 tok/s
----------------------------------------------------------------------
Model usage:
  SLM: 8 tokens ( 80.0%)
  LLM: 2 tokens ( 20.0%)
----------------------------------------------------------------------
Uncertainty (aleatoric, 0 to 1, of the SLM, threshold 0.5):
  Count:   8
  Mean:    0.3544 ± 0.2541
  Range:   0.0049 to 0.8934
  Median:  0.3250
  Top 10%: mean 0.8934, range 0.8934 to 0.8934
----------------------------------------------------------------------
Percentiles, from the highest:
  top_10%: 0.6229
  top_20%: 0.4762
  top_30%: 0.4250
  top_40%: 0.3900
  top_50%: 0.3250
  top_60%: 0.2584
  top_70%: 0.2178
  top_80%: 0.1677
  top_90%: 0.0982
----------------------------------------------------------------------
Most uncertain tokens:
 1. Pos  23 | "quantum"            | Uncertainty: 0.8934 | Model: LLM
 2. Pos   3 | "中文"               | Uncertainty: 0.5070 | Model: SLM
 3. Pos   4 | "\\n\\t\\x1b"           | Uncertainty: 0.4300 | Model: SLM
 4. Pos   5 | "日本語の文字が..."  | Uncertainty: 0.3800 | Model: SLM
 5. Pos   6 | (id 60000)           | Uncertainty: 0.2700 | Model: SLM
 6. Pos   7 | " \\"so\\" "           | Uncertainty: 0.2120 | Model: SLM
 7. Pos   8 | "antidisestablis..." | Uncertainty: 0.1382 | Model: SLM
 8. Pos 100 | "e\u0301e\u0301"                 | Uncertainty: 0.0049 | Model: LLM
======================================================================"""


def example() -> ProfileResult:
    texts = ["quantum", "中文", "\n\t\x1b", "日本語の文字がとても長い", "", ' "so" ']
    texts += ["antidisestablishmentarianism", "e\u0301e\u0301"]
    values = [0.8934, 0.507, 0.43, 0.38, 0.27, 0.212, 0.1382, 0.0049]
    positions = [23, 3, 4, 5, 6, 7, 8, 100]
    tokens = [
        token(position, text, value, token_id=position * 10_000)
        for position, text, value in zip(positions, texts, values, strict=True)
    ]
    tokens[0], tokens[-1] = (replace(tokens[i], model_used="llm") for i in (0, -1))
    stats = {"strategy": "profiled_uncertainty", "elapsed_time": 1.25, "tokens_per_second": 8.0}
    return profile([*tokens, token(101), token(102)], stats=stats, threshold=0.5)


def test_the_summary_is_as_documented() -> None:
    assert example().summary == GOLDEN
    assert {len(line) for line in GOLDEN.splitlines() if line[0] in "=-"} == {70}


def test_it_is_printed_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    example().print_summary()
    assert capsys.readouterr().out == GOLDEN + "\n"
    file = io.StringIO()
    example().print_summary(file)
    assert file.getvalue() == GOLDEN + "\n" and not capsys.readouterr().out


def test_what_an_encoding_lacks_is_escaped() -> None:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding="ascii")
    example().print_summary(file)
    file.flush()
    assert rb'"\u4e2d\u6587"' in written.getvalue() and rb"0.3544 \xb1 0.2541" in written.getvalue()


def test_drafts_are_counted() -> None:
    stats = {"strategy": "speculative", "draft_generated": 168, "draft_accepted": 128}
    tokens = [token(0, model_used="lookup", value=2.5), token(1, model_used="llm")]
    printed = profile(tokens, stats=stats, metric="entropy", measured_by="llm").summary
    assert "Tokens: 2\nDrafts: 168 drafted, 128 accepted (76.2%)\n" in printed
    assert "  SLM:    0 tokens (  0.0%)\n" in printed
    assert "  Lookup: 1 tokens ( 50.0%)\n" in printed
    assert "Entropy (nats, of the LLM):\n  Count:   1\n" in printed
    assert '1. Pos   0 | "x"                  | Entropy: 2.5000 | Model: Lookup\n' in printed


@pytest.mark.parametrize("tokens", [[], [token(0)]])
def test_a_profile_without_measurements_says_so(tokens: list[object]) -> None:
    printed = profile(tokens).summary
    assert printed.endswith(f"of the SLM):\n  measured at no token\n{'=' * 70}")
    assert "Percentiles" not in printed


def width(text: str) -> int:
    """Columns by a rule of its own: as if composed, marks nothing, wide characters two."""
    shown = [c for c in unicodedata.normalize("NFC", text) if not unicodedata.combining(c)]
    return sum(1 + (unicodedata.east_asian_width(c) in ("W", "F")) for c in shown)


@given(st.lists(st.tuples(TEXTS, st.floats(0, 1000), st.integers(0, 9999)), min_size=1))
def test_columns_are_aligned(rows: list[tuple[str, float, int]]) -> None:
    tokens = [token(position, text, value) for text, value, position in rows]
    lines = profile(tokens).summary.split("Most uncertain tokens:\n")[1].splitlines()[:-1]
    assert len(lines) == min(10, len(rows))
    assert len({width(line[: line.rindex("| Uncertainty: ")]) for line in lines}) == 1
    assert len({width(line[: line.rindex("| Model: ")]) for line in lines}) == 1
    assert len({line.index(" | ") for line in lines}) == 1


@given(profiles())
def test_no_token_breaks_a_line_or_moves_the_cursor(profiled: ProfileResult) -> None:
    profiled = replace(profiled, stats={**profiled.stats, "strategy": "a\nb"})
    lines = profiled.summary.split("\n")
    assert lines[1] == "Profile: a\\nb"
    assert all(line.isprintable() for line in lines)
    wanted = len(profiled.get_high_uncertainty_tokens(10))
    assert sum(bool(re.match(r"[ 1]\d\. Pos", line)) for line in lines) == wanted


@given(st.text(), st.integers(4, 20))
def test_shortened_text_fits(text: str, columns: int) -> None:
    short = shortened(text, columns)
    assert columns_of(short) <= columns
    assert short.isprintable()
    full = shortened(text, 10_000)
    assert short == full if columns_of(full) <= columns else full.startswith(short[:-3])


def test_columns_of_text() -> None:
    known = {
        "abc": 3,
        "中文": 4,
        "\uff46": 2,
        "ｶ": 1,
        "é": 1,
        "e\u0301": 1,
        "한": 2,
        "\u1112\u1161": 2,
    }
    assert {text: columns_of(text) for text in known} == known
