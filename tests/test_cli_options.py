"""What the command makes of its options, before anything is loaded."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair

import hybridgen.generator
from hybridgen.cli import main
from hybridgen.cli_chat import in_a_line
from hybridgen.cli_options import in_options, template_kwargs
from hybridgen.strategies.declarations import BUILT_IN


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """The command takes SIGINT for itself: give it back to the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*models: Any, **options: Any) -> None:
        raise AssertionError("models were loaded")

    monkeypatch.setattr(hybridgen.generator, "HybridGenerator", load)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("slm_model_id: cannot load 'a': no", "--slm: cannot load 'a': no"),
        ("llm_model_id and slm_model_id need one", "--llm and --slm need one"),
        ("max_batch_size must be 1", "--batch-size must be 1"),
        ("the room (max_seq_len, at most)", "the room (--max-seq-len, at most)"),
        ("seed must be 1, not the seed", "--seed must be 1, not the seed"),
        ("threshold=1 and llm_fraction=2 exclude", "--threshold=1 and --llm-fraction=2 exclude"),
        ("with strategy='llm' there", "with --strategy=llm there"),
        ("'/tmp/top_k/top_p.json': no such file", "'/tmp/top_k/top_p.json': no such file"),
        ("a stop to the device", "a stop to the device"),
        ("it has my_top_k", "it has my_top_k"),
    ],
)
def test_errors_speak_of_options(message: str, said: str) -> None:
    assert in_options(message, BUILT_IN) == said


def test_values_for_the_template_are_json_or_strings() -> None:
    given = ["enable_thinking=false", "n=3", 'tools=[{"a": 1}]', "date=26 Nov", "empty="]
    assert template_kwargs(given) == {
        "enable_thinking": False,
        "n": 3,
        "tools": [{"a": 1}],
        "date": "26 Nov",
        "empty": "",
    }
    assert template_kwargs(None) == {}
    for wrong in ("enable_thinking", "=1", "a b=1", "tokenize=true", "return_dict=1"):
        with pytest.raises(ValueError, match="must be KEY=VALUE, got"):
            template_kwargs([wrong])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a PROMPT, or --file"),
        (["p", "--file", "a", "--out", "b"], "give a PROMPT, or --file"),
        (["--file", "a"], "--file and --out go together"),
        (["p", "--out", "a"], "--file and --out go together"),
        (["p", "--chat-template-kwargs", "a=1"], "--chat-template-kwargs is for --chat"),
        (["chat", "p"], "unrecognized arguments: p"),
        (["chat", "--stats", "block"], "invalid choice"),
        (["pairs", "p"], "unrecognized arguments: p"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    nothing_loads: None, capfd: Any, arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("usage: hybridgen")
    assert reason in err.splitlines()[-1]


def test_wrong_values_are_refused_before_models_load(
    nothing_loads: None, capfd: Any, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a"\n')
    both = ["--file", str(prompts), "--out"]
    for arguments, reason in (
        (["p", "--slm", "a"], "--slm is given without --llm"),
        (["p", "--pair", "qwen3-8b", "--llm", "a"], "leave --slm and --llm out"),
        (["p", "--max-seq-len", "100"], "--max-new-tokens must leave room"),
        (["p", "--chat", "--chat-template-kwargs", "a"], "must be KEY=VALUE"),
        (["chat", "--top-p", "3"], "--top-p must"),
        (["chat", "--max-seq-len", "0"], "--max-seq-len must"),
        (["chat", "--chat-template-kwargs", "a"], "must be KEY=VALUE"),
        ([*both, str(prompts)], "--out must not be the file of --file"),
        ([*both, str(tmp_path / "none" / "out")], "No such file or directory"),
        (["--file", str(tmp_path / "none"), "--out", "out"], "No such file or directory"),
        ([*both, str(tmp_path / "out"), "--batch-size", "0"], "--batch-size must"),
        ([*both, str(tmp_path / "out"), "--top-k", "-1"], "--top-k must"),
    ):
        assert main(arguments) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("hybridgen: error: ")
        assert reason in err
        assert len(err.splitlines()) == 1


def test_one_turn_through_the_template(tiny_pair: TinyPair, capfd: Any) -> None:
    """The text is that of the messages; --system alone means a chat."""
    from hybridgen import HybridGenerator

    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    options = [*models, "--max-new-tokens", "9", "--seed", "2", "--stats", "none"]
    generator = HybridGenerator(str(tiny_pair.slm), str(tiny_pair.llm), device="cpu")
    asked: dict[str, Any] = {"max_new_tokens": 9, "seed": 2, "print_stats": False}
    user = [{"role": "user", "content": "hello"}]
    for given, messages in (
        (["--chat"], user),
        (["--system", "be brief"], [{"role": "system", "content": "be brief"}, *user]),
    ):
        assert main(["hello", *given, *options]) == 0
        text = generator.generate(messages, **asked).text
        assert capfd.readouterr().out == text + ("" if text.endswith("\n") else "\n")
    assert main(["hello", "--chat"]) == 1
    assert "has no chat template" in capfd.readouterr().err


def test_a_file_of_prompts(tiny_pair: TinyPair, capfd: Any, tmp_path: Path) -> None:
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    prompts, results = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    prompts.write_text('"one"\n{"prompt": "two"}\n')
    files = ["--file", str(prompts), "--out", str(results), "--batch-size", "2"]
    options = [*files, *models, "--max-new-tokens", "4", "--seed", "2"]
    assert main([*options, "--stats", "json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(err)
    assert (out, told["prompts"], told["skipped"], told["seed"]) == ("", 2, 0, 2)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["one", "two"]
    prompts.write_text('"one"\n{"prompt": "two"}\n"three"\n')
    assert main([*options, "--chat"]) == 0
    assert capfd.readouterr().err.startswith("3 prompts (2 done before): 4 tokens in ")
    prompts.write_text('"one"\n"2"\n')
    assert main(options) == 1
    assert "results.jsonl, line 2: it is the result of another prompt" in capfd.readouterr().err


def test_what_a_reply_cost_fits_in_a_line() -> None:
    stats = {
        "total_tokens": 40,
        "elapsed_time": 2.0,
        "tokens_per_second": 20.0,
        "draft_generated": 50,
        "acceptance_rate": 0.5,
        "reused_tokens": 12,
        "prompt_tokens": 30,
        "seed": 7,
    }
    assert in_a_line(stats) == (
        "40 tokens in 2.00s, 20.00 tok/s, acceptance rate 50.00%, "
        "12 of 30 prompt tokens reused, seed 7"
    )
    del stats["draft_generated"], stats["reused_tokens"]
    assert in_a_line(stats) == "40 tokens in 2.00s, 20.00 tok/s, seed 7"
