"""Prompts: the shipped sets, random ids, and files in their published formats."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import train_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hybridgen.benchmarks import prompt_files, prompts
from hybridgen.pair import LLM_PATH

SPEC_BENCH = {"mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"}
# In the published formats, with the fields and escapes that the files have.
MT_BENCH_FILE = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."]},
    {
        "question_id": 111,
        "category": "math",
        "turns": ["What is 2 + 2?", "And 3 + 3?"],
        "reference": ["4", "6"],
    },
    {"question_id": 121, "category": "coding", "turns": ["Sort a list.", "Reverse it."]},
    {"question_id": 82, "category": "writing", "turns": ["Write a letter.", "Shorten it."]},
]
SPEC_BENCH_FILE = [
    *MT_BENCH_FILE,
    {"question_id": 161, "category": "translation", "turns": ["Translate: Hallo\u2028Welt"]},
    {"question_id": 401, "category": "rag", "turns": ["Passage: ... Question: why?"]},
]
HUMAN_EVAL_FILE = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def one():\n    """ Return 1\n    """\n',
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": "def two():\n",
        "entry_point": "two",
        "canonical_solution": "    return 2\n",
        "test": "",
    },
]
GSM8K_FILE = [
    {"question": "Ana has 3 hens\u2019 eggs. How many?", "answer": "She has <<3=3>>3.\n#### 3"},
    {"question": "And twice as many?", "answer": "6\n#### 6"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    """Without a chat template."""
    plain = train_tokenizer()
    plain.chat_template = None
    return plain


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(found: list[prompts.Prompt], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(prompt.ids) for prompt in found]


def test_the_shipped_prompts_are_of_the_six_categories() -> None:
    records = prompt_files.read(prompts.SETS["spec-bench"])
    assert Counter(record.category for record in records) == dict.fromkeys(SPEC_BENCH, 8)
    assert len({record.text for record in records}) == 48
    for record in records:
        words = len(record.text.split())
        if record.category in ("rag", "summarization"):
            assert words >= 250
        assert 8 < words < 400
    lines = prompts.SETS["spec-bench"].read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == list(range(1, 49))
    several = [len(json.loads(line)["turns"]) for line in lines]
    assert several == [2] * 8 + [1] * 40


def test_the_shipped_code_suits_the_embedded_pair() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LLM_PATH)
    found = prompts.load("code", tokenizer)
    assert [prompt.category for prompt in found] == ["code"] * 16
    records = prompt_files.read(prompts.SETS["code"])
    assert texts(found, tokenizer) == [record.text for record in records]
    assert all(2 < len(prompt.ids) < 100 for prompt in found)


def test_a_chat_goes_through_the_template_and_code_does_not(
    tokenizer: Any, plain: Any, tmp_path: Path
) -> None:
    asked = written(tmp_path / "test.jsonl", GSM8K_FILE)
    (first, _) = prompts.load(str(asked), tokenizer)
    assert tokenizer.decode(first.ids) == f"user: {GSM8K_FILE[0]['question']}\nassistant:"
    (first, _) = prompts.load(str(asked), plain)
    assert plain.decode(first.ids) == GSM8K_FILE[0]["question"]
    code = written(tmp_path / "HumanEval.jsonl", HUMAN_EVAL_FILE)
    (first, _) = prompts.load(str(code), tokenizer)
    assert tokenizer.decode(first.ids) == HUMAN_EVAL_FILE[0]["prompt"]


def test_categories_take_turns(plain: Any) -> None:
    whole = prompts.load("spec-bench", plain)
    assert whole == prompts.load("spec-bench", plain)
    assert len(whole) == 48
    for count in (6, 7, 12, 20):
        found = prompts.load("spec-bench", plain, count)
        assert found == whole[:count]
        each = Counter(prompt.category for prompt in found)
        assert max(each.values()) - min(each[name] for name in SPEC_BENCH) <= 1
    assert {prompt.category for prompt in whole[:6]} == SPEC_BENCH


@pytest.mark.parametrize(
    ("file", "records", "categories"),
    [
        ("question.jsonl", MT_BENCH_FILE, ["writing", "math", "coding", "writing"]),
        (
            "question.jsonl",
            SPEC_BENCH_FILE,
            ["mt_bench", "translation", "rag", "mt_bench", "mt_bench", "mt_bench"],
        ),
        ("HumanEval.jsonl", HUMAN_EVAL_FILE, ["HumanEval"] * 2),
        ("test.jsonl", GSM8K_FILE, ["gsm8k"] * 2),
    ],
    ids=["mt-bench", "spec-bench", "humaneval", "gsm8k"],
)
def test_published_files(
    file: str, records: list[Any], categories: list[str], plain: Any, tmp_path: Path
) -> None:
    path = written(tmp_path / file, records)
    found = prompts.load(str(path), plain)
    assert [prompt.category for prompt in found] == categories
    fields = ("question", "prompt")
    own = {next((r[f] for f in fields if f in r), None) or r["turns"][0] for r in records}
    assert set(texts(found, plain)) == own
    zipped = tmp_path / f"{file}.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert prompts.load(str(zipped), plain) == found


def test_ends_of_lines_and_marks_of_windows_do_not_matter(tmp_path: Path) -> None:
    expected = prompt_files.read(written(tmp_path / "a.jsonl", SPEC_BENCH_FILE))
    lines = [json.dumps(record, ensure_ascii=False) for record in SPEC_BENCH_FILE]
    assert "\u2028" in "".join(lines)
    (tmp_path / "b.jsonl").write_bytes(
        b"\xef\xbb\xbf" + "\r\n\r\n".join([*lines, "  "]).encode("utf-8")
    )
    assert prompt_files.read(tmp_path / "b.jsonl") == expected


GOOD = json.dumps(GSM8K_FILE[0]).encode()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"question": "a", "answer"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"text": "a"}', "is of no known format: it has text, but none of category and turns; "),
        (b"{}", "is of no known format: it has no fields"),
        (b'{"task_id": "a/0", "prompt": "b"}', "has another format than the lines before"),
        (b'{"question": "", "answer": "1"}', "has no text in question"),
        (b'{"question": 5, "answer": "1"}', "has no text in question"),
        (b'{"question": "\\ud800", "answer": "1"}', "has half a character in question"),
        ('{"question": "Käse", "answer": "1"}'.encode("latin-1"), "is not UTF-8"),
        ('{"question": "a", "answer": "1"}'.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_broken_line_is_named(bad: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(GOOD + b"\n\n" + bad + b"\n" + GOOD + b"\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:3 {message}")):
        prompt_files.read(path)


@pytest.mark.parametrize("turns", ["text", [], [""], [5], None])
def test_turns_must_be_texts(turns: object, tmp_path: Path) -> None:
    path = written(tmp_path / "question.jsonl", [{"category": "qa", "turns": turns}])
    with pytest.raises(ValueError, match=r"question\.jsonl:1 has no (list of turns|text in)"):
        prompt_files.read(path)


def test_files_that_hold_nothing_or_are_damaged(tmp_path: Path, plain: Any) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no prompts"):
        prompt_files.read(path)
    for cut in (12, -4):
        path.write_bytes(gzip.compress(GOOD * 20)[:cut])
        with pytest.raises(ValueError, match=r"empty\.jsonl is a damaged gzip file"):
            prompt_files.read(path)
    for name in ("humaneval", str(tmp_path), str(tmp_path / "none.jsonl")):
        with pytest.raises(ValueError, match=r"is no file and no set .*spec-bench, code, random"):
            prompts.load(name, plain)


def test_random_prompts_depend_on_seed_and_place_alone(tokenizer: Any) -> None:
    found = prompts.load("random", tokenizer, 4, length=300)
    assert [len(prompt.ids) for prompt in found] == [300] * 4
    assert found == prompts.load("random", tokenizer, 9, length=300)[:4]
    shorter = prompts.load("random", tokenizer, 4, length=10)
    assert [prompt.ids for prompt in shorter] == [prompt.ids[:10] for prompt in found]
    assert found != prompts.load("random", tokenizer, 4, length=300, seed=1)
    drawn = {token for prompt in found for token in prompt.ids}
    assert 0 not in drawn, "the end of a text is no part of one"
    assert len(drawn) > 300
    assert drawn <= set(range(len(tokenizer)))
    assert [len(p.ids) for p in prompts.load("random", tokenizer)] == [128] * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "code", "count": 17}, "'code' has 16 prompts, not 17"),
        ({"name": "code", "count": 0}, "count must be at least 1"),
        ({"name": "code", "length": 10}, "only random prompts have a length"),
        ({"name": "random", "length": 0}, "length must be at least 1"),
    ],
)
def test_impossible_wishes(options: dict[str, Any], message: str, plain: Any) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.load(options.pop("name"), plain, **options)
