"""Shape-true checkpoints: of the published sizes, and agreeing as often as asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hybridgen import HybridGenerator
from hybridgen.benchmarks import pairs, shaped
from hybridgen.benchmarks.shapes import SHAPES, parameters, tensors
from hybridgen.engine.decoder import Decoder

AGREEMENTS = (0.5, 0.8, 0.95)
# As published, and whether the head is the embedding there.
PUBLISHED = {
    "qwen3-0.6b": (596_049_920, True),
    "qwen3-1.7b": (1_720_574_976, True),
    "qwen3-4b": (4_022_468_096, True),
    "qwen3-8b": (8_190_735_360, False),
    "llama-1b": (1_235_814_400, True),
    "llama-8b": (8_030_261_248, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shaped")


def tiny(folder: Path, agreement: float) -> pairs.Pair:
    return pairs.find(f"tiny@{agreement}", folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    config = SHAPES[name]
    published, tied = PUBLISHED[name]
    head = config["vocab_size"] * config["hidden_size"] if tied else 0
    assert parameters(config) == published + head


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_config_and_has_the_same_tensors(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[name]))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert theirs == dict(tensors(SHAPES[name]))
    assert config.rope_parameters["rope_theta"] == SHAPES[name]["rope_theta"]
    if "llama" in name:
        assert config.rope_parameters["rope_type"] == "llama3"


@pytest.mark.parametrize("agreement", (0.0, *AGREEMENTS, 1.0))
def test_successors_are_permutations_that_agree_as_asked(agreement: float) -> None:
    vocabulary = 4096
    large, small = shaped.successors(vocabulary, 1.0), shaped.successors(vocabulary, agreement)
    assert torch.equal(small.sort().values, torch.arange(vocabulary))
    share = (large == small).double().mean().item()
    assert share == pytest.approx(agreement, abs=2 / vocabulary)
    # Where they differ, the SLM's choice follows another token of the group for the LLM.
    group = large.argsort()[small] // shaped.GROUP
    assert torch.equal(group, torch.arange(vocabulary) // shaped.GROUP)


def test_the_skeleton_is_one_cycle() -> None:
    following = shaped.successors(512, 1.0).tolist()
    seen, token = set(), 0
    while token not in seen:
        seen.add(token)
        token = following[token]
    assert len(seen) == 512


def test_fewer_agreeing_tokens_differ_where_more_do_too() -> None:
    large = shaped.successors(512, 1.0)
    few, many = (shaped.successors(512, agreement) != large for agreement in (0.9, 0.5))
    assert bool((many | ~few).all())


def test_transformers_writes_the_skeleton(folder: Path) -> None:
    pair = tiny(folder, 0.8)
    assert pair.slm is not None
    for source, agreement in ((pair.slm, 0.8), (pair.llm, 1.0)):
        model = AutoModelForCausalLM.from_pretrained(source)
        assert model.dtype == torch.bfloat16
        text = model.generate(
            torch.tensor([[3, 1, 4]]), max_new_tokens=60, do_sample=False, eos_token_id=None
        )[0]
        following = shaped.successors(512, agreement)
        assert torch.equal(text[3:], following[text[2:-1]])


def test_the_likeliest_token_has_the_probability_that_is_stated(folder: Path) -> None:
    for source in (tiny(folder, 0.8).slm, tiny(folder, 0.8).llm):
        model = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            logits = model(torch.arange(512)[None]).logits
        probabilities = logits.double().softmax(-1).sort(descending=True).values[0]
        assert probabilities[:, 0].mean().item() == pytest.approx(shaped.TOP, abs=0.05)
        assert probabilities[:, 1:8].sum(1).mean().item() == pytest.approx(
            1 - shaped.TOP - shaped.TAIL, abs=0.05
        )


def test_layers_add_the_noise_that_is_stated(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny(folder, 0.8).llm, dtype=torch.float32)
    grown: dict[str, torch.Tensor] = {}
    model.model.norm.register_forward_pre_hook(lambda _, given: grown.update(last=given[0]))
    ids = torch.randint(512, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(ids)
        added = grown["last"] - model.model.embed_tokens(ids)
    # Attention adds less than its share, for it takes means.
    assert 0.5 * shaped.NOISE < added.square().mean().sqrt().item() < 1.1 * shaped.NOISE


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_speculation_accepts_as_often_as_asked_and_changes_no_text(
    folder: Path, agreement: float
) -> None:
    pair = tiny(folder, agreement)
    generator = HybridGenerator(pair.slm, pair.llm, max_seq_len=600)
    assert type(generator.pair.slm) is type(generator.pair.llm) is Decoder
    options: dict[str, Any] = {
        "max_new_tokens": 500,  # hardly less than the cycle: no token counts twice
        "temperature": 0.0,
        "ignore_eos": True,
        "print_stats": False,
    }
    alone = generator.generate([11], strategy="llm", **options)
    assert len(set(alone.tokens)) == 500
    both = generator.generate([11], strategy="speculative", num_drafts=1, **options)
    assert both.tokens == alone.tokens
    drafts = both.stats["draft_generated"]
    allowed = 3 * (agreement * (1 - agreement) / drafts) ** 0.5
    assert both.stats["acceptance_rate"] == pytest.approx(agreement, abs=allowed)
    # After every token of that text, not only where a draft began.
    small = AutoModelForCausalLM.from_pretrained(pair.slm)
    choices = small(torch.tensor([[11, *alone.tokens[:-1]]])).logits[0].argmax(-1)
    share = (choices == torch.tensor(alone.tokens)).double().mean().item()
    assert share == pytest.approx(agreement, abs=13 / 500)


def test_sampled_drafts_are_accepted_as_often_as_the_models_overlap(folder: Path) -> None:
    pair = tiny(folder, 0.8)
    generator = HybridGenerator(pair.slm, pair.llm, max_seq_len=600)
    result = generator.generate(
        [11],
        strategy="speculative",
        num_drafts=1,
        max_new_tokens=500,
        temperature=1.0,
        verification="rejection",
        ignore_eos=True,
        print_stats=False,
        seed=1,
    )
    ids = torch.tensor([[11, *result.tokens[:-1]]])
    small, large = (
        AutoModelForCausalLM.from_pretrained(path)(ids).logits.double().softmax(-1)
        for path in (pair.slm, pair.llm)
    )
    overlap = torch.minimum(small, large).sum(-1).mean().item()
    accepted = result.stats["acceptance_rate"]
    print(f"accepted at temperature 1: {accepted}, overlap of the distributions: {overlap}")
    allowed = 3 * (overlap * (1 - overlap) / result.stats["draft_generated"]) ** 0.5
    assert accepted == pytest.approx(overlap, abs=allowed)
    # Not only in the likeliest token, on which the models agree in 0.8 of cases.
    assert 0.7 < overlap < 0.9


def test_the_tokenizer_has_a_word_for_each_id(folder: Path) -> None:
    pair = tiny(folder, 0.8)
    tokenizer = AutoTokenizer.from_pretrained(pair.llm)
    assert len(tokenizer) == 512
    assert tokenizer("w3 w511 w42")["input_ids"] == [3, 511, 42]
    assert tokenizer.decode([3, 511, 42]) == "w3 w511 w42"
    assert tokenizer.eos_token_id == 0
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(pair.slm).get_vocab()


def test_what_is_too_large_for_a_file_goes_into_several(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shaped, "SHARD", 200_000)
    shaped.write(tmp_path, "tiny-llm", 1.0)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * parameters(SHAPES["tiny-llm"])
    whole = safe_open(Path(tiny(folder, 0.8).llm) / "model.safetensors", "pt")
    assert set(index["weight_map"]) == set(whole.keys())
    for file in files:
        with safe_open(file, "pt") as part:
            for name in part.keys():  # noqa: SIM118 (the file is no iterable)
                assert index["weight_map"][name] == file.name
                assert torch.equal(part.get_tensor(name), whole.get_tensor(name))
    model, single = (
        AutoModelForCausalLM.from_pretrained(source) for source in (tmp_path, tiny(folder, 0.8).llm)
    )
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, single(ids).logits)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        shaped.successors(512, 1.5)
    with pytest.raises(ValueError, match="too small for 512 tokens"):
        shaped.scale(512, 16)
