"""The page of a profile in a browser: `-m browser`, where there is a Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profile_values import TRAPS, profile, token
from webdriver import Browser, browser

from hybridgen.profiling import ProfileResult

pytestmark = pytest.mark.browser

ARROW_RIGHT, ESCAPE, TAB = "\ue014", "\ue00c", "\ue004"
TEXT = "return document.getElementById('text').textContent"
LOOK = """
  const style = getComputedStyle(document.querySelectorAll("#text .t")[arguments[0]]);
  return [style.backgroundColor, style.opacity];
"""
CHOOSE = "document.getElementById(arguments[0]).click()"
SHARE = """
  const share = document.getElementById("share");
  share.value = arguments[0];
  share.dispatchEvent(new Event("input"));
  return [...document.querySelectorAll("#text .t.low")].map((token) => token.textContent);
"""
TIP = "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent"


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def profiled() -> ProfileResult:
    """Ten words; uncertainty rises over them, entropy falls."""
    return profile(
        [
            token(i, f"word{i} ", i / 10, entropy=9.0 - i, model_used="llm" if i % 2 else "slm")
            for i in range(10)
        ]
    )


def show(page: Browser, profiled: ProfileResult, tmp_path: Path, **given: Any) -> None:
    path = tmp_path / "page.html"
    profiled.save_html(path, **given)
    page.open(path)


def alpha(page: Browser, number: int) -> float:
    """How much of the hot colour lies over the ground behind a token."""
    color: str = page.run(LOOK, number)[0]
    return float(color.split(", ")[3][:-1]) if color.startswith("rgba") else 1.0


def test_the_text_is_shown_exactly_with_and_without_scripts(page: Browser, tmp_path: Path) -> None:
    traps = profile([token(i, text, i / 9) for i, text in enumerate([*TRAPS, *reversed(TRAPS)])])
    expected = traps.generated_text.replace("\0", "\ufffd")
    show(page, traps, tmp_path)
    assert page.run(TEXT) == expected
    assert page.complaints() == []
    page.scripts(False)
    try:
        show(page, traps, tmp_path)
        assert page.run(TEXT) == expected
        assert page.run("return document.querySelector('#text .t').title").startswith('"<script>"')
        assert page.run("return document.getElementById('percentile').hidden")
    finally:
        page.scripts(True)


def test_newlines_and_tabs_are_as_in_the_text(page: Browser, tmp_path: Path) -> None:
    texts = ["a", "\n\n", "\t", "b", "  ", "c"]
    show(page, profile([token(i, text, 0.5) for i, text in enumerate(texts)]), tmp_path)
    places = page.run("""
      return [...document.querySelectorAll("#text .t")].map((token) => {
        const place = token.getBoundingClientRect();
        return [place.left, place.top];
      });
    """)
    (left, top), *_, (tabbed, below), _, (apart, level) = places
    letter = (apart - tabbed) / 3
    assert below > top + 40 and level == below
    assert tabbed - left == pytest.approx(8 * letter, abs=1)


def test_a_metric_is_chosen(page: Browser, profiled: ProfileResult, tmp_path: Path) -> None:
    show(page, profiled, tmp_path)
    assert (alpha(page, 0), alpha(page, 9)) == (0, 1)
    page.run(CHOOSE, "metric-entropy")
    assert (alpha(page, 0), alpha(page, 9)) == (1, 0)
    shown = "return [...document.querySelectorAll('.legend')].map((e) => e.checkVisibility())"
    assert page.run(shown) == [False, False, True]
    show(page, profiled, tmp_path, metric="entropy")
    assert (alpha(page, 0), alpha(page, 9)) == (1, 0)


def test_models_are_filtered(page: Browser, profiled: ProfileResult, tmp_path: Path) -> None:
    show(page, profiled, tmp_path)
    page.run(CHOOSE, "show-llm")
    assert [page.run(LOOK, i)[1] for i in range(4)] == ["1", "0.3", "1", "0.3"]
    page.run(CHOOSE, "show-llm")
    page.run(CHOOSE, "show-slm")
    assert [page.run(LOOK, i)[1] for i in range(4)] == ["0.3", "1", "0.3", "1"]


def test_the_highest_values_are_filtered(
    page: Browser, profiled: ProfileResult, tmp_path: Path
) -> None:
    words = [f"word{i} " for i in range(10)]
    unmeasured = profile([*profiled.tokens, token(10, "none")])
    show(page, unmeasured, tmp_path)
    assert page.run(SHARE, 20) == [*words[:8], "none"]
    assert page.run(SHARE, 1) == [*words[:9], "none"]
    page.run(CHOOSE, "metric-entropy")
    assert page.run(SHARE, 20) == [*words[2:], "none"]
    assert page.run(SHARE, 100) == []


def test_pointing_and_keys_show_what_a_token_tells(
    page: Browser, profiled: ProfileResult, tmp_path: Path
) -> None:
    show(page, profiled, tmp_path)
    assert page.run(TIP) is None
    assert not page.run("return document.querySelector('[title]')"), "one tip is enough"
    page.point("#text .t", 3)
    assert page.run(TIP).split("\n")[:3] == [
        '"word3 "  id 3, position 3',
        "written by the LLM",
        "Uncertainty 0.3000",
    ]
    page.point("h1")
    assert page.run(TIP) is None
    page.run("document.querySelector('#text .t').focus()")
    page.press(ARROW_RIGHT)
    page.press(ARROW_RIGHT)
    assert page.run(TIP).startswith('"word2 "')
    page.press(ESCAPE)
    assert page.run(TIP) is None
    page.press(TAB)
    assert page.run("return document.activeElement.tagName") == "SUMMARY", "one stop for all tokens"


@pytest.mark.parametrize("height", [900, 420])
def test_tips_stay_in_sight(page: Browser, tmp_path: Path, height: int) -> None:
    top = {"top_k_probs": [0.1] * 10, "top_k_ids": range(10)}
    words = [f"word{i} " + "\n" * (i % 7 == 6) for i in range(200)]
    many = [token(i, word, i / 199, **top) for i, word in enumerate(words)]
    size = {"width": 700, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.command("Emulation.setDeviceMetricsOverride", **size)
    try:
        show(page, profile(many), tmp_path)
        for number in (0, 3, 6, 90):
            page.point("#text .t", number)
            left, top, right, bottom, *sight = page.run("""
              const place = document.getElementById("tip").getBoundingClientRect();
              return [place.left, place.top, place.right, place.bottom,
                document.documentElement.clientWidth, document.documentElement.clientHeight];
            """)
            assert 0 <= left < right <= sight[0] and 0 <= top < bottom <= sight[1]
    finally:
        page.command("Emulation.clearDeviceMetricsOverride")


def luminance(color: list[float]) -> float:
    """Relative luminance as WCAG has it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_readable_on_every_colour(
    page: Browser, profiled: ProfileResult, tmp_path: Path, dark: bool
) -> None:
    page.dark(dark)
    show(page, profiled, tmp_path)
    ink, ground, hot = page.run("""
      const body = getComputedStyle(document.body);
      const hottest = document.querySelectorAll("#text .t")[9];
      return [body.color, body.backgroundColor, getComputedStyle(hottest).backgroundColor].map(
        (color) => color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255));
    """)
    page.dark(False)
    assert (luminance(ground) < 0.1) == dark
    for share in (0, 0.25, 0.5, 0.75, 1):
        behind = luminance([g + share * (h - g) for g, h in zip(ground, hot, strict=True)])
        lighter, darker = sorted([behind, luminance(ink)], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, "WCAG's least contrast for text"
    assert abs(luminance(hot) - luminance(ground)) > 0.1, "lightness alone tells the ends apart"
