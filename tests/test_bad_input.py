"""Whatever is wrong with a call, the error names it, and the generator goes on as before."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_values import OUT_OF_RANGE, WRONG_TYPE
from conftest import TinyPair
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from hybridgen import GenerationStrategy, HybridGenerator, verify_exactness

ROWS = 2
POSITIONS = 96


@pytest.fixture(scope="module")
def loaded(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(
        tiny_pair.slm,
        tiny_pair.llm,
        device="cpu",
        dtype="float32",
        max_batch_size=ROWS,
        max_seq_len=POSITIONS,
    )


def generate(generator: HybridGenerator, prompt: Any = "def area", **options: Any) -> Any:
    return generator.generate(prompt, **{"max_new_tokens": 6, "print_stats": False, **options})


@pytest.fixture(scope="module")
def expected(loaded: HybridGenerator) -> list[int]:
    return generate(loaded, seed=5).tokens


@pytest.fixture
def generator(loaded: HybridGenerator, expected: list[int]) -> Iterator[HybridGenerator]:
    """A generator that must write the same after the test as before."""
    yield loaded
    assert generate(loaded, seed=5).tokens == expected


WRONG_PRINT_STATS = [("print_stats", value) for value in (None, 1, "no")]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE + WRONG_PRINT_STATS)
def test_a_wrong_type(generator: HybridGenerator, name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        generate(generator, **{name: value})


@pytest.mark.parametrize(("name", "value", "accepted"), OUT_OF_RANGE)
def test_out_of_range(generator: HybridGenerator, name: str, value: object, accepted: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\b") as caught:
        generate(generator, **{name: value})
    got = value[-1] if isinstance(value, list) and value else value
    assert accepted in str(caught.value)
    of_lists = ("seed", "stop", "bad_words_ids", "logits_processor")
    assert name in of_lists or str(got) in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        7,
        b"text",
        1.5,
        {"role": "user"},
        [1.5],
        [True],
        [None],
        [1, "text"],
        ["text", 1],
        [[1], None],
        torch.tensor([1.5]),
        torch.tensor(3),
        np.array([[["a"]]]),
    ],
)
def test_prompts_of_a_wrong_type(generator: HybridGenerator, prompt: object) -> None:
    with pytest.raises(TypeError, match=r"^prompt\b"):
        generate(generator, prompt)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "empty"),
        ([], "empty"),
        ([[]], "empty"),
        ([[1], []], "empty"),
        (["a", ""], "empty"),
        (torch.zeros(1, 0, dtype=torch.int64), "empty"),
        ([-1], "token id -1"),
        ([10**6], "token id 1000000"),
        ([2**70], "token id"),
        ("\ud800", "Unicode"),
        ("x" * 10**7, "more than"),
        (torch.tensor([[1, 2], [1, 0]]), "pad id 0"),
        ([1] * (POSITIONS + 1), f"has {POSITIONS}"),
        ([1] * (POSITIONS - 5), f"{POSITIONS + 1} positions"),
        ([{"content": "hi"}], "role"),
    ],
)
def test_prompts_that_cannot_be_continued(
    generator: HybridGenerator, prompt: object, reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"^prompt\b.*{reason}"):
        generate(generator, prompt)


def test_a_prompt_that_just_fits(generator: HybridGenerator) -> None:
    result = generate(generator, [1] * (POSITIONS - 6), ignore_eos=True)
    assert len(result.tokens) == 6


def test_an_unknown_argument_gets_a_suggestion(generator: HybridGenerator) -> None:
    with pytest.raises(TypeError, match=r"'num_draft'.*did you mean 'num_drafts'"):
        generate(generator, num_draft=3)


def test_an_unknown_strategy_lists_the_known(generator: HybridGenerator) -> None:
    with pytest.raises(ValueError, match="did you mean 'speculative'") as caught:
        generate(generator, strategy="speculativ")
    assert all(repr(name) in str(caught.value) for name in generator.strategies)


def test_threshold_and_llm_fraction_together(generator: HybridGenerator) -> None:
    with pytest.raises(ValueError, match="threshold"):
        generate(generator, strategy="entropy", threshold=1.0, llm_fraction=0.5)


def test_a_transformers_streamer_for_several_prompts(generator: HybridGenerator) -> None:
    streamer = TextStreamer(generator.tokenizer)
    with pytest.raises(
        ValueError, match=r"stream is a transformers streamer.*stream\(row, piece\)"
    ):
        generate(generator, ["a", "b"], stream=streamer)


def test_an_error_of_the_users_stream_reaches_the_user(generator: HybridGenerator) -> None:
    def fail(piece: str) -> None:
        raise LookupError("sink is gone")

    with pytest.raises(LookupError, match="sink is gone"):
        generate(generator, stream=fail)


class Returns(GenerationStrategy):
    """A strategy that returns what it was made with."""

    def __init__(self, value: object) -> None:
        self.value = value

    def generate(self, *arguments: Any, **options: Any) -> Any:
        return self.value


@pytest.mark.parametrize(
    "strategy",
    [None, "llm", GenerationStrategy, Returns, Returns(None), Returns("text"), Returns((1, {}))],
)
def test_a_custom_strategy_that_is_none(generator: HybridGenerator, strategy: Any) -> None:
    generator.strategies["mine"] = strategy
    try:
        with pytest.raises(TypeError, match="mine"):
            generate(generator, strategy="mine")
    finally:
        del generator.strategies["mine"]


def make(pair: TinyPair, **changes: Any) -> HybridGenerator:
    options = {"slm_model_id": pair.slm, "llm_model_id": pair.llm, "device": "cpu"}
    return HybridGenerator(**{**options, **changes})


def test_a_cache_that_does_not_fit_says_the_bytes_before_anything_is_allocated(
    tiny_pair: TinyPair,
) -> None:
    with pytest.raises(ValueError, match=r"need [\d,]+ bytes.*lower max_batch_size"):
        make(tiny_pair, max_batch_size=10**9)


def copy_of(folder: Path, target: Path, without: str = "") -> Path:
    """The checkpoint, with one kind of file left out."""
    target.mkdir()
    for path in folder.iterdir():
        if not (without and re.search(without, path.name)):
            (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        (r"safetensors", "safetensors"),
        (r"^config\.json", r"config\.json"),
        (r"tokenizer", "tokenizer|vocab"),
    ],
)
def test_a_folder_that_lacks_a_part(
    tiny_pair: TinyPair, tmp_path: Path, without: str, reason: str
) -> None:
    folder = copy_of(tiny_pair.llm, tmp_path / "llm", without)
    with pytest.raises(ValueError, match=rf"(?s)^llm_model_id\b.*({reason})"):
        make(tiny_pair, llm_model_id=folder)


def test_pickled_weights_are_never_read(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = copy_of(tiny_pair.slm, tmp_path / "slm", "safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")
    with pytest.raises(ValueError, match=r"^slm_model_id\b.*pickled"):
        make(tiny_pair, slm_model_id=folder)


def test_what_is_said_of_pickled_weights_works(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = copy_of(tiny_pair.llm, tmp_path / "llm", "safetensors")
    weights = AutoModelForCausalLM.from_pretrained(tiny_pair.llm).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"from_pretrained\(folder\)\.save_pretrained\(another\)"):
        make(tiny_pair, llm_model_id=folder)
    another = tmp_path / "another"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another)
    AutoTokenizer.from_pretrained(folder).save_pretrained(another)
    made = [make(tiny_pair, llm_model_id=name) for name in (tiny_pair.llm, another)]
    texts = [generate(each, strategy="llm", temperature=0).tokens for each in made]
    assert texts[0] == texts[1]


FOREIGN = [
    ("m.gguf", "GGUF ones: name the checkpoint in safetensors"),
    ("model.onnx", "ONNX ones: name the checkpoint"),
    ("onnx/model.onnx", "ONNX ones: name the checkpoint"),
    ("model.ckpt", "pickled ones"),
]


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(("name", "told"), FOREIGN)
def test_a_folder_of_another_format(
    tiny_pair: TinyPair, tmp_path: Path, name: str, told: str, config: bool
) -> None:
    folder = tmp_path / "llm"
    if config:
        copy_of(tiny_pair.llm, folder, "safetensors")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=f"^llm_model_id: .*only safetensors .* only {told}"):
        make(tiny_pair, llm_model_id=folder)


def test_another_format_beside_safetensors_is_ignored(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = copy_of(tiny_pair.llm, tmp_path / "llm")
    (folder / "m.gguf").write_bytes(b"GGUF")
    make(tiny_pair, llm_model_id=folder)


def test_a_file_in_place_of_a_folder(tiny_pair: TinyPair, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"^slm_model_id: .* only GGUF ones"):
        make(tiny_pair, slm_model_id=file)
    with pytest.raises(ValueError, match=r"^llm_model_id: .* is a file: name its folder"):
        make(tiny_pair, llm_model_id=str(tiny_pair.llm / "model.safetensors"))


def test_a_hub_id_of_gguf_files(tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridgen.engine.checkpoint.cached_file", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"^llm_model_id: .* only GGUF ones"):
        make(tiny_pair, llm_model_id="someone/Tiny-GGUF")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file(tiny_pair: TinyPair, tmp_path: Path, name: str) -> None:
    folder = copy_of(tiny_pair.llm, tmp_path / "llm")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^llm_model_id\b"):
        make(tiny_pair, llm_model_id=folder)


def test_an_architecture_that_is_not_supported(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = copy_of(tiny_pair.llm, tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "no-such-model"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no-such-model"):
        make(tiny_pair, llm_model_id=folder)


def test_a_hub_id_that_cannot_be_had(tiny_pair: TinyPair) -> None:
    with pytest.raises(ValueError, match=r"^llm_model_id\b.*nobody/nothing"):
        make(tiny_pair, llm_model_id="nobody/nothing")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"generator": None}, TypeError),
        ({"prompts": "one prompt"}, TypeError),
        ({"prompts": None}, TypeError),
        ({"prompts": [None]}, TypeError),
        ({"prompts": []}, ValueError),
        ({"prompts": [""]}, ValueError),
        ({"max_new_tokens": 0}, ValueError),
        ({"max_new_tokens": "8"}, TypeError),
        ({"num_drafts": (0,)}, ValueError),
        ({"num_drafts": ()}, ValueError),
        ({"num_drafts": 4.5}, TypeError),
        ({"temperature": -1.0}, ValueError),
        ({"temperature": "hot"}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": "a"}, TypeError),
    ],
)
def test_arguments_of_verify_exactness(
    generator: HybridGenerator, options: dict[str, Any], error: type[Exception]
) -> None:
    name = next(iter(options)).removesuffix("s")
    arguments = {"generator": generator, "prompts": ["def area"], "max_new_tokens": 4, **options}
    with pytest.raises(error, match=name):
        verify_exactness(**arguments)
