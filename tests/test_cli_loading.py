"""What the command says of models: errors before anything is loaded, and our warnings."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair
from safetensors.torch import load_file, save_file

import hybridgen.generator
from hybridgen.cli import main


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--top-p", "3"),
        ("--top-k", "-1"),
        ("--min-p", "nan"),
        ("--temperature", "-1"),
        ("--num-drafts", "16"),
        ("--max-new-tokens", "0"),
        ("--seed", "-1"),
        ("--threshold", "-1"),
        ("--llm-fraction", "2"),
        ("--llm-consecutive-tokens", "0"),
        ("--stop", ""),
        ("--repetition-penalty", "0"),
        ("--no-repeat-ngram-size", "-1"),
        ("--min-new-tokens", "-1"),
        ("--max-seq-len", "1"),
        ("--batch-size", "0"),
        ("--pair", "nobody"),
    ],
)
def test_options_out_of_range_are_refused_before_models_load(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, option: str, value: str
) -> None:
    def load(*models: Any, **options: Any) -> None:
        raise AssertionError("models were loaded")

    monkeypatch.setattr(hybridgen.generator, "HybridGenerator", load)
    assert main(["p", option, value]) == 1
    assert capfd.readouterr().err.startswith(f"hybridgen: error: {option} must ")


def with_unused_tensor(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    save_file({**load_file(path), "score.weight": torch.ones(3)}, path, {"format": "pt"})
    return target


def test_our_warnings_are_one_line_on_stderr(
    tiny_pair: TinyPair, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = with_unused_tensor(tiny_pair.llm, tmp_path / "llm")
    models = ["--slm", str(tiny_pair.slm), "--llm", str(llm), "--device", "cpu"]
    options = ["--max-new-tokens", "2", "--stats", "none"]
    assert main(["a prompt", *models, *options]) == 0
    assert capfd.readouterr().err == (
        f"hybridgen: warning: {llm} has tensors that Qwen3ForCausalLM does not use: score.weight\n"
    )
    monkeypatch.setattr(sys, "warnoptions", ["error"])  # what -W error leaves there
    assert main(["a prompt", *models, *options]) == 1
    assert capfd.readouterr().err.startswith(f"hybridgen: error: {llm} has tensors that")


def test_a_model_that_cannot_be_loaded_is_one_line(
    tiny_pair: TinyPair, tmp_path: Path, capfd: Any
) -> None:
    llm = with_unused_tensor(tiny_pair.llm, tmp_path / "llm")
    models = ["--slm", str(tiny_pair.slm), "--llm", str(llm)]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (llm / name).write_bytes(b"\x08" * 64)
        assert main(["a prompt", *models]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith(f"hybridgen: error: --llm: cannot load '{llm}'")
        assert len(err.splitlines()) == 1
