"""Peers that run here write what they should: the greedy text, as many tokens as asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work
from hybridgen.benchmarks.judge import Judge
from hybridgen.benchmarks.peers import apart, transformers_generate
from hybridgen.benchmarks.peers.base import (
    CannotRun,
    check_family,
    conversions,
    dtype_of,
    filters,
    lacking,
)
from hybridgen.benchmarks.peers.table import PEERS, peer

GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_k": 20, "top_p": 0.95}
PROMPTS = [[5, 17, 9, 44], [3, 8], [101, 40, 7, 7, 12, 90]]
COUNT = 24
WITH_ENDS = 3  # of the tokens that the greedy text holds, one is made the end of text


@pytest.fixture(scope="module")
def pair(tiny_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny pair, told to end at a token that its greedy text holds, and to repeat nothing."""
    wanted = greedy(str(tiny_pair.llm), PROMPTS[0], GenerationConfig())
    folder = tmp_path_factory.mktemp("ending")
    for name, source in (("slm", tiny_pair.slm), ("llm", tiny_pair.llm)):
        model = AutoModelForCausalLM.from_pretrained(source)
        model.config.eos_token_id = wanted[WITH_ENDS]
        model.generation_config.eos_token_id = wanted[WITH_ENDS]
        model.generation_config.repetition_penalty = 3.0
        model.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((source / file).read_bytes())
    return Pair("tiny", str(folder / "slm"), str(folder / "llm"), "random")


def greedy(folder: str, prompt: list[int], config: GenerationConfig) -> list[int]:
    """By transformers alone, one forward a token without a cache, so by no code of the peers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(COUNT):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def wanted(pair: Pair) -> list[list[int]]:
    return [greedy(pair.llm, prompt, GenerationConfig()) for prompt in PROMPTS]


@pytest.fixture(scope="module", params=list(PEERS))
def contenders(
    request: pytest.FixtureRequest, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Contender]]:
    """All of a peer's, but the compiled one, which takes a minute.

    Other engines are apart, as they are measured: a process that has loaded them survives no fork.
    """
    name, place = request.param, Place("cpu", None, 2)
    if why := peer(name).missing(place):
        pytest.skip(why)
    given = pair, place, tmp_path_factory.mktemp("scratch"), len(PROMPTS)
    if name == "transformers":
        made = peer(name).contenders(*given)
        yield [next(made) for _ in range(4)]
        return
    found = list(apart.contenders(name, *given))
    yield found
    for one in found:
        one.close()


def test_greedy_texts_are_the_models(contenders: list[Contender], wanted: list[list[int]]) -> None:
    for contender in contenders:
        for prompt, text in zip(PROMPTS, wanted, strict=True):
            written = contender.write(Work([prompt], COUNT, GREEDY, 0)).tokens
            assert written == [text], contender.name


def test_rows_of_a_batch_are_the_texts_alone(
    contenders: list[Contender], wanted: list[list[int]]
) -> None:
    for contender in contenders:
        if contender.batch > 1:
            assert contender.write(Work(PROMPTS, COUNT, GREEDY, 0)).tokens == wanted, contender.name


def test_a_batch_that_is_too_large_is_refused(contenders: list[Contender]) -> None:
    for contender in contenders:
        too_many = [[1, 2]] * (contender.batch + 1)
        with pytest.raises((ValueError, RuntimeError), match="prompts a call"):
            contender.write(Work(too_many, 2, GREEDY, 0))


def test_sampled_texts_are_of_what_the_filters_leave_and_differ_by_seed(
    contenders: list[Contender], pair: Pair
) -> None:
    judge = Judge({"llm": AutoModelForCausalLM.from_pretrained(pair.llm, dtype=torch.float32)})
    for contender in contenders:
        if not contender.samples:
            continue
        works = [Work([PROMPTS[0]], COUNT, SAMPLED, seed) for seed in (1, 2)]
        texts = [contender.write(work).tokens for work in works]
        for work, text in zip(works, texts, strict=True):
            assert judge.verdict(work, text, ("llm",)) == "sampled", contender.name
        assert texts[0] != texts[1], contender.name


def test_one_token_can_be_asked_for(contenders: list[Contender], wanted: list[list[int]]) -> None:
    for contender in contenders:
        work = Work([PROMPTS[1]], 1, GREEDY, 0)
        assert contender.write(work).tokens == [wanted[1][:1]], contender.name


def test_each_tells_its_dtype_and_whose_text_it_writes(contenders: list[Contender]) -> None:
    for contender in contenders:
        assert contender.options["dtype"] == "float32"
        assert contender.writers == ("llm",)


def test_names_begin_as_the_peers(contenders: list[Contender]) -> None:
    names = [contender.name for contender in contenders]
    assert len(set(names)) == len(names)
    assert all(any(name.startswith(known) for known in PEERS) for name in names)


def test_transformers_compiles_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_generate, "which", lambda name: None)
    assert "g++" in str(transformers_generate.not_compiled(Place("cpu", None, 1)))
    assert transformers_generate.not_compiled(Place("cuda:0", None, 1)) is None


def test_other_checkpoints_of_the_same_name_are_converted_anew(tmp_path: Path) -> None:
    def kept(slm: str | None, llm: str) -> Path:
        return conversions(Pair("own", slm, llm, "code"), tmp_path / "scratch")

    (tmp_path / "llm").mkdir()
    weights = tmp_path / "llm" / "model.safetensors"
    weights.write_bytes(b"one")
    first = kept(None, str(tmp_path / "llm"))
    assert first == kept(None, str(tmp_path / "llm"))
    weights.write_bytes(b"another")
    other = kept(None, str(tmp_path / "llm"))
    found = {first, other, kept(None, "a/b"), kept("a/b", "a/b"), kept(None, "a/c")}
    assert len(found) == 5 and {path.parent for path in found} == {tmp_path / "scratch"}


def test_every_peer_says_where_it_cannot_run() -> None:
    for name in ("vllm", "sglang"):
        assert "cpu" in str(peer(name).missing(Place("cpu", None, 2)))
    assert "cuda" in str(peer("llama.cpp").missing(Place("cuda:0", None, 2)))
    assert "no_such_module" in str(lacking("no_such_module", "no-such-module"))
    for name in PEERS:
        assert name == peer(name).NAME


def test_the_dtype_is_the_places_or_the_checkpoints(pair: Pair) -> None:
    assert dtype_of(pair, Place("cpu", None, 1)) == "float32"
    assert dtype_of(pair, Place("cpu", "bfloat16", 1)) == "bfloat16"


def test_filters_that_are_not_named_are_off() -> None:
    told = filters(Work([[1]], 1, {"temperature": 0.5}, 0))
    assert told == {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def test_models_of_other_kinds_are_not_converted() -> None:
    from transformers import GPT2Config, LlamaConfig

    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    for config in (GPT2Config(), LlamaConfig(rope_parameters=yarn)):
        with pytest.raises(CannotRun):
            check_family(config)


def test_scratch_is_used_again(pair: Pair, tmp_path: Path) -> None:
    module = peer("llama.cpp")
    pytest.importorskip("gguf", reason="the extra `peers` is not installed")
    first = module.converted(pair.llm, "float32", tmp_path / "llm.gguf")  # type: ignore[attr-defined]
    first.write_bytes(b"kept")
    again = module.converted(pair.llm, "float32", tmp_path / "llm.gguf")  # type: ignore[attr-defined]
    assert again.read_bytes() == b"kept"
