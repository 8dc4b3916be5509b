"""A profile comes back from its file to the bit, and no damaged file passes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from profile_values import FLOATS, profile, profiles, token

from hybridgen.profiling import ProfileResult
from hybridgen.profiling.files import write_text


def bits(value: Any) -> Any:
    """What distinguishes -0.0 from 0.0, and 1 from 1.0 and True."""
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, dict):
        return {name: bits(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    return (type(value).__name__, value)


def everything(profiled: ProfileResult) -> Any:
    return bits([vars(profiled) | {"tokens": [vars(each) for each in profiled]}])


@given(profiles(FLOATS))
def test_a_profile_comes_back_to_the_bit(tmp_path_factory: Any, profiled: ProfileResult) -> None:
    path = tmp_path_factory.getbasetemp() / "profile.json"
    profiled.save_to_file(path)
    back = ProfileResult.load(str(path))
    assert back == profiled
    assert everything(back) == everything(profiled)


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


@given(profiles(FLOATS))
def test_the_file_is_plain_json(tmp_path_factory: Any, profiled: ProfileResult) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.json"
    profiled.save_to_file(path)
    written = path.read_text(encoding="ascii")
    document = json.loads(written, parse_constant=refuse)
    assert document["format"] == "hybridgen.profile" and document["version"] == 1
    assert document["generated_text"] == profiled.generated_text
    texts = [each["token_text"] for each in document["tokens"]]
    assert texts == [each.token_text for each in profiled]
    assert [each["q"] for each in document["tokens"]] == [each.q for each in profiled]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    given = {"stats": {"strategy": "slm", "rate": math.nan}, "threshold": math.inf}
    profile([token(0, value=math.nan, p=math.inf)], **given).save_to_file(path)
    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["tokens"][0]["entropy"] is document["tokens"][0]["p"] is None
    assert document["stats"]["rate"] is document["threshold"] is None


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    top = {"top_k_probs": (0.5,), "top_k_ids": (1,), "top_k_texts": ("a",)}
    profile([token(0, value=0.5), token(1, **top)]).save_to_file(path)
    return path


def rewrite(path: Path, value: Any, *place: Any) -> None:
    """Put `value` at `place` of the document; ... takes away what is there."""
    document = json.loads(path.read_text())
    inner = document
    for name in place[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("value", "place", "words"),
    [
        (2, ["version"], "its version is 2, and this hybridgen reads version 1"),
        (True, ["version"], "its version is True"),
        (..., ["version"], "its version is None"),
        ("other", ["format"], 'does not say "format": "hybridgen.profile"'),
        (..., ["tokens"], "the profile has no 'tokens'"),
        ({}, ["tokens"], "'tokens' of the profile is {}"),
        (3, ["more"], "the profile has an unknown 'more'"),
        (None, ["generated_text"], "'generated_text' of the profile is None"),
        ([], ["stats"], r"'stats' of the profile is \[\]"),
        ("epistemic", ["metric"], "metric must be one of"),
        (math.nan, ["threshold"], "it holds NaN"),
        (math.inf, ["stats", "a"], "it holds Infinity"),
        (7, ["tokens", 1], "token 1 is 7"),
        (..., ["tokens", 1, "entropy"], "token 1 has no 'entropy'"),
        (1, ["tokens", 0, "extra"], "token 0 has an unknown 'extra'"),
        ("0.5", ["tokens", 0, "entropy"], "'entropy' of token 0 is '0.5'"),
        (True, ["tokens", 0, "entropy"], "'entropy' of token 0 is True"),
        (10**400, ["tokens", 0, "p"], "'p' of token 0 is "),
        (1.5, ["tokens", 0, "token_id"], "'token_id' of token 0 is 1.5"),
        (1, ["tokens", 0, "accepted"], "'accepted' of token 0 is 1"),
        ("gpt", ["tokens", 0, "model_used"], "model_used must be one of"),
        (["x"], ["tokens", 1, "top_k_ids"], "'top_k_ids' of token 1 is "),
        ([1, 2], ["tokens", 1, "top_k_ids"], "top_k_ids must be as many as top_k_probs"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    saved: Path, value: Any, place: list[Any], words: str
) -> None:
    rewrite(saved, value, *place)
    with pytest.raises(ValueError, match=words) as caught:
        ProfileResult.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b"{'format': 1}"]
)
def test_what_is_no_profile_at_all_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json is no profile that can be read"):
        ProfileResult.load(path)
    with pytest.raises(FileNotFoundError):
        ProfileResult.load(tmp_path / "none.json")


def test_every_beginning_of_a_file_is_refused(saved: Path) -> None:
    whole = saved.read_text()
    ProfileResult.load(saved)
    for length in range(len(whole.rstrip())):
        saved.write_text(whole[:length])
        with pytest.raises(ValueError, match="no profile that can be read"):
            ProfileResult.load(saved)


def test_a_file_appears_whole_or_not_at_all(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    seen = []

    def fail(*paths: Any) -> None:
        seen.append(Path(paths[0]).read_text(encoding="utf-8"))
        raise OSError("no more")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no more"):
        write_text(saved, "new")
    assert seen == ["new"], "it is whole before it takes its place"
    assert saved.read_bytes() == before and [*saved.parent.iterdir()] == [saved]


def test_a_link_stays_one(saved: Path) -> None:
    link = saved.with_name("link.json")
    link.symlink_to(saved)
    write_text(link, "a\nb\ud800")
    assert link.is_symlink() and saved.read_bytes() == b"a\nb?"
    with pytest.raises(FileNotFoundError):
        write_text(saved.parent / "none" / "x.json", "")
