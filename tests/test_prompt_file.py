"""Prompts from a file: each result is the prompt's own, and what is done is not done again."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair

import hybridgen.prompt_file
from hybridgen import HybridGenerator
from hybridgen.chat import Chat

CHAT = [{"role": "user", "content": "größe"}]
PROMPTS = ["def area", [40, 41, 42], CHAT, "for item", "the fox", "日本語", "print"]
ASKED: dict[str, Any] = {"max_new_tokens": 6, "seed": 5}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(str(tiny_pair.slm), str(tiny_pair.llm), device="cpu", max_batch_size=2)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """As a string, as either kind of object, and with a blank line."""
    lines = [json.dumps(PROMPTS[0]), json.dumps({"prompt": PROMPTS[1], "id": "x"}), ""]
    lines += [json.dumps({"messages": CHAT})]
    lines += [json.dumps(prompt, ensure_ascii=False) for prompt in PROMPTS[3:]]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_result_is_the_prompts_own(
    generator: HybridGenerator, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, generate = [], generator.generate

    def counted(prompt: Any, **options: Any) -> Any:
        asked.append(len(prompt))
        return generate(prompt, **options)

    monkeypatch.setattr(generator, "generate", counted)
    monkeypatch.setattr(hybridgen.prompt_file, "CHUNKS", 2)
    out = tmp_path / "results.jsonl"
    done = generator.generate_file(prompts, out, **ASKED)
    assert asked == [4, 3], "more prompts a call than rows, so that rows are refilled"
    results = read(out)
    assert [result["index"] for result in results] == [*range(7)]
    assert [result["prompt"] for result in results] == PROMPTS
    for result in results:
        seed = 5 + result["index"]
        alone = generate(result["prompt"], max_new_tokens=6, seed=seed, print_stats=False)
        assert (result["tokens"], result["text"]) == (alone.tokens, alone.text)
        assert result["stats"]["seed"] == seed
    assert (done.prompts, done.skipped, done.seed) == (7, 0, 5)
    assert done.tokens == sum(len(result["tokens"]) for result in results)


def test_a_run_that_was_broken_off_goes_on(
    generator: HybridGenerator, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    generator.generate_file(prompts, out, **ASKED)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept, half in ((3, lines[3][:40]), (2, lines[2][:-1]), (4, lines[4][:3]), (7, b"")):
        out.write_bytes(b"".join(lines[:kept]) + half)
        done = generator.generate_file(str(prompts), str(out), **ASKED)
        assert (done.prompts, done.skipped) == (7, kept)
        assert [(r["index"], r["tokens"]) for r in read(out)] == [
            (r["index"], r["tokens"]) for r in map(json.loads, lines)
        ]
    out.write_bytes(b"".join(lines[2:]))
    assert generator.generate_file(prompts, out, **ASKED).skipped == 5
    assert [result["index"] for result in read(out)] == [2, 3, 4, 5, 6, 0, 1]


def test_results_of_something_else_are_left_alone(
    generator: HybridGenerator, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    for content, reason in (
        ('{"index": 0, "prompt": "another"}\n', "line 1: it is the result of another prompt 0"),
        ('{"index": 9, "prompt": "another"}\n', "line 1: there is no prompt 9"),
        ('{"index": true, "prompt": "def area"}\n', "line 1: there is no prompt True"),
        ("a letter\n", "line 1: it is no result"),
        ("[1]\n", "line 1: it is no result"),
        ("a letter", "it ends with what is no result"),
    ):
        out.write_text(content)
        with pytest.raises(ValueError, match=reason):
            generator.generate_file(prompts, out)
        assert out.read_text() == content


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no json", "must be a JSON string"),
        ("5", "must be a JSON string"),
        ('{"text": "a"}', "must be a JSON string"),
        ('{"prompt": "a", "messages": []}', "must be a JSON string"),
        (json.dumps("a " * 300), "prompt has .* tokens"),
        ('""', "prompt is empty"),
        ('["a"]', "prompt must be one prompt"),
        ("[1, 2.5]", "prompt must be a string, token ids"),
        ("[100000]", "prompt holds token id 100000"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_written(
    generator: HybridGenerator, tmp_path: Path, line: str, reason: str
) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    path.write_text(f'"a"\n\n{line}\n')
    with pytest.raises((ValueError, TypeError), match=rf"prompts.jsonl, line 3: .*{reason}"):
        generator.generate_file(path, out, **ASKED)
    assert not out.exists() or out.read_bytes() == b""


def test_arguments_are_checked(generator: HybridGenerator, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    for name in ("stream", "reuse", "print_stats"):
        with pytest.raises(TypeError, match=f"does not take {name}"):
            generator.generate_file(prompts, out, **{name: None})
    for name, value in (("top_p", 3), ("max_new_tokens", 0), ("max_new_tokens", 500)):
        with pytest.raises(ValueError, match=f"{name} must"):
            generator.generate_file(prompts, out, **{name: value})
    with pytest.raises(ValueError, match=r"seed must have one integer a row \(7\)"):
        generator.generate_file(prompts, out, seed=[1, 2])


def test_seeds_are_drawn_once_or_taken_from_a_list(
    generator: HybridGenerator, prompts: Path, tmp_path: Path
) -> None:
    drawn, listed = tmp_path / "drawn.jsonl", tmp_path / "listed.jsonl"
    first = generator.generate_file(prompts, drawn, max_new_tokens=1).seed
    assert first is not None
    assert [r["stats"]["seed"] for r in read(drawn)] == [*range(first, first + 7)]
    generator.generate_file(prompts, listed, max_new_tokens=1, seed=[9, 1, 2, 3, 4, 5, 6])
    assert [r["stats"]["seed"] for r in read(listed)] == [9, 1, 2, 3, 4, 5, 6]


def test_prompts_are_prepared_and_results_have_them_as_they_were(
    generator: HybridGenerator, tmp_path: Path
) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    path.write_text('"one"\n')
    prepare = Chat(generator, "be brief").opened_by
    generator.generate_file(path, out, prepare=prepare, **ASKED)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    (result,) = read(out)
    assert result["prompt"] == "one"
    assert result["tokens"] == generator.generate(messages, **ASKED, print_stats=False).tokens


def test_no_prompts_make_no_results(generator: HybridGenerator, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    path.write_text("\n\n")
    assert str(generator.generate_file(path, out)).startswith("0 prompts: 0 tokens")
    assert out.read_bytes() == b""
