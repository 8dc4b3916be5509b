"""The page of a profile, read by an HTML parser: the text as it is, and nothing that escapes."""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from profile_values import profile, profiles, token

from hybridgen.profiling import ProfileResult
from hybridgen.profiling.report import render
from hybridgen.profiling.spans import Span, spans

VOID = {"meta", "input"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self) -> Iterator["Element"]:
        yield self
        for child in self.children:
            if not isinstance(child, str):
                yield from child.all()

    def one(self, name: str) -> "Element":
        """By its tag or id."""
        (found,) = [e for e in self.all() if name in (e.tag, e.attributes.get("id"))]
        return found


class Parser(HTMLParser):
    """A tree; every tag that is opened must be closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def parse(page: str) -> Element:
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert parser._open == [parser.root]
    return parser.root


def tokens_of(page: Element) -> list[Element]:
    return [e for e in page.one("main").all() if "t" in (e.attributes.get("class") or "").split()]


@given(profiles())
def test_the_text_is_there_exactly(profiled: ProfileResult) -> None:
    page = parse(render(profiled, "entropy"))
    assert page.one("main").text == profiled.generated_text.replace("\0", "\ufffd")
    assert [e.tag for e in page.one("main").all()][1:] == ["span"] * len(spans(profiled))


@given(profiles())
def test_nothing_that_a_token_says_becomes_part_of_the_page(profiled: ProfileResult) -> None:
    def frame(page: Element) -> list[Any]:
        """Tags and the names of their attributes, without the text's."""
        inside = {id(e) for e in page.one("main").all()}
        return [(e.tag, list(e.attributes)) for e in page.all() if id(e) not in inside]

    page = parse(render(profiled, "uncertainty"))
    (script,) = [e for e in page.all() if e.tag == "script"]
    expected = parse(render(profile([token(0, "plain", 0.5)]), "uncertainty"))
    assert script.text == expected.one("script").text
    known = {"class", "style", "data-mark", "title"}
    for span in tokens_of(page):
        assert set(span.attributes) <= known
        assert re.fullmatch(r"(--[a-z]+:[0-9.]+;?)*", span.attributes.get("style") or "")
    tags = {tag for tag, _ in frame(page)}
    assert tags <= {tag for tag, _ in frame(expected)} | {"i", "p"}
    assert "\0" not in render(profiled, "uncertainty")


def test_dangerous_tokens_are_shown_as_text() -> None:
    texts = [
        '<script>alert("1")</script>',
        "' onmouseover='x",
        '" style="x',
        "-->",
        "&lt;",
        "</main>",
    ]
    profiled = profile(
        [
            token(i, text, i / 9, top_k_probs=(0.5,), top_k_ids=(1,), top_k_texts=(text,))
            for i, text in enumerate(texts)
        ],
        stats={"strategy": "</title><script>alert(2)</script>"},
    )
    written = render(profiled, "uncertainty")
    assert written.count("<script>") == 1 == written.count("</script>") == written.count("</main>")
    page = parse(written)
    assert [span.text for span in tokens_of(page)] == texts
    assert page.one("title").text == "Profile: </title><script>alert(2)</script>"
    for span, text in zip(tokens_of(page), texts, strict=True):
        shown = text.replace('"', '\\"')
        assert (span.attributes["title"] or "").startswith(f'"{shown}"')


def test_the_page_asks_for_nothing_and_runs_only_its_own_script() -> None:
    written = render(profile([token(0, "a", 0.5)]), "uncertainty")
    assert not re.search(r"(?:https?:)?//|\burl\(|@import|\bsrc=|\bhref=", written)
    page = parse(written)
    digest = base64.b64encode(hashlib.sha256(page.one("script").text.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" + digest + "'"
    assert policy in [e.attributes.get("content") for e in page.all()]


@given(profiles())
def test_all_tokens_are_in_one_part_of_the_text(profiled: ProfileResult) -> None:
    parts = spans(profiled)
    assert "".join(part.text for part in parts) == profiled.generated_text
    assert [t for part in parts for t in part.tokens] == list(profiled)
    assert all(part.text or part.tokens for part in parts)


def test_a_character_of_several_tokens_is_one_part() -> None:
    texts = ["a", "", "", "日", "e", "\u0301", "👩", "\u200d", "💻", "\n", "", ""]
    tokens = [token(i, text, float(i)) for i, text in enumerate(texts)]
    parts = spans(profile(tokens))
    assert [(part.text, len(part.tokens)) for part in parts] == [
        ("a", 1),
        ("日", 3),
        ("e\u0301", 2),
        ("👩\u200d💻", 3),
        ("\n", 1),
        ("", 1),
        ("", 1),
    ]
    page = parse(render(profile(tokens), "uncertainty"))
    _, wide, *_, newline, silent, _ = tokens_of(page)
    assert (wide.attributes["title"] or "").startswith('one character of 3 tokens: "日"\n\nno text')
    assert wide.attributes["style"] == ";".join(
        f"--{metric}:{3 / 11:.4f}" for metric in ("uncertainty", "epistemic", "entropy")
    )
    assert newline.attributes["data-mark"] == "\u21b5" and newline.text == "\n"
    assert silent.attributes["data-mark"] == "\u25e6" and silent.text == ""


def test_a_stop_string_cuts_the_text_and_text_of_no_token_is_kept() -> None:
    tokens = [token(0, "one"), token(1, " END now"), token(2, "")]
    assert spans(profile(tokens, generated_text="one ")) == [
        Span("one", (tokens[0],)),
        Span(" ", (tokens[1],)),
        Span("", (tokens[2],)),
    ]
    assert spans(profile(tokens[:1], generated_text="one more")) == [
        Span("one", (tokens[0],)),
        Span(" more", ()),
    ]
    other = [token(0, "one"), token(1, "else"), token(2, "two")]
    assert [part.text for part in spans(profile(other, generated_text="onetwo"))] == [
        "one",
        "",
        "two",
    ]
    assert spans(profile([], generated_text="")) == []


def test_a_token_tells_all_that_is_known() -> None:
    told = token(
        7,
        " on",
        0.25,
        token_id=40,
        model_used="llm",
        entropy=None,
        top_k_probs=(0.5, 0.125, 0.0625),
        top_k_ids=(41, 40, 42),
        top_k_texts=(" off\n", " on", ""),
        accepted=False,
        rejected_id=41,
        rejected_text=" off\n",
        p=0.25,
        q=0.5,
    )
    accepted = token(8, "x", accepted=True, p=1.0, model_used="lookup")
    page = parse(render(profile([told, accepted]), "uncertainty"))
    first, second = tokens_of(page)
    assert (first.attributes["title"] or "").split("\n") == [
        '" on"  id 40, position 7',
        "written by the LLM",
        "Uncertainty 0.2500",
        "Epistemic   0.2500",
        "Entropy     not measured",
        'draft rejected: " off\\n", p 0.2500, q 0.5000',
        "the SLM's likeliest:",
        ' 50.00%  " off\\n"',
        ' 12.50%  " on"  <- written',
        "  6.25%  id 42",
    ]
    assert first.attributes["class"] == "t llm rejected"
    assert first.attributes["style"] == "--uncertainty:0.5;--epistemic:0.5"
    lines = (second.attributes["title"] or "").split("\n")
    assert "looked up in the text" in lines and "draft accepted, p 1.0000" in lines
    assert second.attributes["class"] == "t lookup" and "style" not in second.attributes


def test_colours_and_legend_run_from_the_lowest_to_the_highest_value() -> None:
    values = [0.25, 0.75, 0.5, None]
    tokens = [token(i, "x", value, entropy=None) for i, value in enumerate(values)]
    page = parse(render(profile(tokens, threshold=0.375), "uncertainty"))
    places = [span.attributes.get("style") for span in tokens_of(page)]
    assert places == [
        *(f"--uncertainty:{v};--epistemic:{v}" for v in ("0.0000", "1.0000", "0.5000")),
        None,
    ]
    legends = {
        name: next(e for e in page.all() if e.attributes.get("class") == f"legend legend-{name}")
        for name in ("uncertainty", "epistemic", "entropy")
    }
    assert legends["uncertainty"].text == "Uncertainty 0.2500  0.7500, threshold 0.375"
    assert legends["uncertainty"].one("i").attributes["style"] == "left:25.00%"
    assert legends["epistemic"].text == "Epistemic 0.2500  0.7500"
    assert legends["entropy"].text == "Entropy: measured at no token"


@pytest.mark.parametrize("metric", ["uncertainty", "epistemic", "entropy"])
def test_any_metric_can_be_chosen(tmp_path: Path, metric: str) -> None:
    path = tmp_path / "page.html"
    profile([token(0, "größe 中文", 0.5)]).save_html(path, metric=metric)
    page = parse(path.read_text(encoding="utf-8"))
    assert page.one("body").attributes["class"] == metric
    radios = [e for e in page.all() if e.attributes.get("name") == "metric"]
    assert [e.attributes["value"] for e in radios if "checked" in e.attributes] == [metric]
    assert page.one("main").text == "größe 中文"


def test_the_profiles_own_metric_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    profile([token(0, "a", 0.5)], metric="entropy").save_html(path)
    assert '<body class="entropy">' in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="metric must be one of"):
        profile([]).save_html(path, metric="loss")
    profile([]).save_html(path)
    assert parse(path.read_text(encoding="utf-8")).one("main").text == ""


def test_the_summary_is_on_the_page() -> None:
    profiled = profile([token(0, "<b>", 0.5)])
    assert parse(render(profiled, "entropy")).one("pre").text == profiled.summary
