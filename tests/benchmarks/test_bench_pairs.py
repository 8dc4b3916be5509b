"""Pairs by name: what is built appears whole, once, and errors say what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, random_model, save, train_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hybridgen import HybridGenerator
from hybridgen.benchmarks import padded, pairs, shaped


def test_the_embedded_pair(tmp_path: Path) -> None:
    pair = pairs.find("embedded", tmp_path)
    assert pair.prompts == "code"
    assert pair.slm is not None
    assert all((Path(path) / "config.json").exists() for path in (pair.slm, pair.llm))
    assert not list(tmp_path.iterdir())


def test_models_of_the_user(tmp_path: Path) -> None:
    pair = pairs.find("mine", tmp_path, slm="a/small", llm="a/large")
    assert (pair.name, pair.slm, pair.llm) == ("mine", "a/small", "a/large")
    assert pair.facts == {"slm": "a/small", "llm": "a/large"}  # the name does not tell them
    assert pair.prompts == "spec-bench"
    assert pairs.find("mine", tmp_path, llm="a/large").slm is None
    with pytest.raises(ValueError, match="needs an LLM of your own"):
        pairs.find("mine", tmp_path, slm="a/small")


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path) -> None:
    for name in ("qwen", "embedded@0.5", "smollm2@2", ""):
        with pytest.raises(ValueError, match=r"there is no pair .*embedded, smollm2, .*tiny"):
            pairs.find(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny@1.5", "between 0 and 1"),
        ("tiny@nan", "between 0 and 1"),
        ("tiny@", "'' is no number"),
        ("tiny@often", "'often' is no number"),
        ("smollm2-padded@0", "not 0"),
        ("smollm2-padded@1.5", "'1.5' is no number"),
    ],
)
def test_an_impossible_number_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pairs.find(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_name_of_the_help_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaped, "write", lambda path, *_: None)
    monkeypatch.setattr(padded, "write", lambda path, *_: None)
    for name in ("slm", "llm"):
        (tmp_path / "smollm2" / name).mkdir(parents=True)
        (tmp_path / "smollm2" / name / "config.json").write_text("{}")
    monkeypatch.delenv("HYBRIDGEN_SMOLLM2", raising=False)
    for name in pairs.NAMES:
        assert pairs.find(name, tmp_path).name == name
        assert pairs.find(name.partition("@")[0], tmp_path).name == name


def test_a_pair_is_built_once_and_one_llm_serves_all_agreements(tmp_path: Path) -> None:
    pair = pairs.find("tiny@0.8", tmp_path)
    assert pair == pairs.Pair(
        "tiny@0.8",
        str(tmp_path / "tiny-slm@0.8"),
        str(tmp_path / "tiny-llm"),
        "random",
        {"agreement": 0.8},
    )
    weights = tmp_path / "tiny-llm" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert pairs.find("tiny", tmp_path) == pair
    other = pairs.find("tiny@0.5", tmp_path)
    assert other.llm == pair.llm
    assert weights.stat().st_mtime_ns == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny-llm",
        "tiny-slm@0.8",
        "tiny-slm@0.5",
    }


def test_a_broken_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *_: object) -> None:
        (path / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shaped, "write_weights", broken)
        pairs.find("tiny", tmp_path)
    assert not list(tmp_path.iterdir())
    pairs.find("tiny", tmp_path)


def test_a_build_that_another_process_finishes_first_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shaped.write

    def slow(path: Path, *options: object) -> None:
        write(path, *options)
        if len(list(tmp_path.glob(".tiny-llm*"))) == 1 and not (tmp_path / "tiny-llm").exists():
            shutil.copytree(path, tmp_path / "tiny-llm")
            facts = {"form": pairs.FORM, "shape": "tiny-llm", "agreement": 1.0}
            (tmp_path / "tiny-llm" / pairs.FACTS).write_text(json.dumps(facts))

    monkeypatch.setattr(shaped, "write", slow)
    pair = pairs.find("tiny@0.8", tmp_path)
    assert Path(pair.llm).is_dir()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_holds_something_else_is_not_taken(tmp_path: Path) -> None:
    pairs.find("tiny@0.8", tmp_path)
    (tmp_path / "tiny-slm@0.8").rename(tmp_path / "tiny-slm@0.5")
    with pytest.raises(ValueError, match=r"tiny-slm@0\.5 is not the checkpoint.*remove it"):
        pairs.find("tiny@0.5", tmp_path)
    (tmp_path / "tiny-slm@0.9").mkdir()
    with pytest.raises(ValueError, match=r"tiny-slm@0\.9 is not the checkpoint"):
        pairs.find("tiny@0.9", tmp_path)


def test_smollm2_is_found_by_folder_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYBRIDGEN_SMOLLM2", raising=False)
    with pytest.raises(ValueError, match=r"smollm2\.py .*smollm2` in a checkout makes it"):
        pairs.find("smollm2", tmp_path)
    for name in ("slm", "llm"):
        (tmp_path / "smollm2" / name).mkdir(parents=True)
        (tmp_path / "smollm2" / name / "config.json").write_text("{}")
    pair = pairs.find("smollm2", tmp_path)
    assert (pair.slm, pair.llm) == tuple(str(tmp_path / "smollm2" / n) for n in ("slm", "llm"))
    assert pair.prompts == "spec-bench"
    monkeypatch.setenv("HYBRIDGEN_SMOLLM2", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"SmolLM2 is not in .*elsewhere"):
        pairs.find("smollm2-padded", tmp_path)


def llama(folder: Path) -> Path:
    """A Llama checkpoint in the form in which SmolLM2 is kept."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    return save(LlamaForCausalLM(config).to(torch.bfloat16), train_tokenizer(), folder)


def test_a_padded_target_writes_its_models_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama(tmp_path / "smollm2" / "llm")
    llama(tmp_path / "smollm2" / "slm")
    monkeypatch.delenv("HYBRIDGEN_SMOLLM2", raising=False)
    pair = pairs.find("smollm2-padded@3", tmp_path)
    assert pair.facts == {"agreement": 1.0, "times": 3}
    small, large = (AutoModelForCausalLM.from_pretrained(path) for path in (pair.slm, pair.llm))
    assert len(large.model.layers) == 3 * len(small.model.layers) == 6
    ids = torch.arange(1, 40)[None]
    assert torch.equal(small(ids).logits, large(ids).logits)
    generator = HybridGenerator(pair.slm, pair.llm, max_seq_len=128)
    result = generator.generate(
        "fox", max_new_tokens=40, temperature=0.0, ignore_eos=True, print_stats=False, num_drafts=3
    )
    assert result.stats["acceptance_rate"] == 1.0


def test_layer_types_are_as_many_as_layers(tmp_path: Path, tiny_pair: TinyPair) -> None:
    source = save(random_model(384, 2, 32, seed=1).to(torch.bfloat16), train_tokenizer(), tmp_path)
    assert json.loads((source / "config.json").read_text())["layer_types"]
    padded.write(tmp_path / "padded", source, 2)
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    assert len(config["layer_types"]) == config["num_hidden_layers"] == 4
    AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
