"""Greedy and coupled speculation write the LLM's own text, token for token."""

from typing import Any

import pytest
import torch
from conftest import TinyPair
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hybridgen import HybridGenerator, verify_exactness

PROMPTS = ["def area(radius):\n", "the quick brown fox", "größe straße"]
DTYPES = [torch.float32, torch.bfloat16]
FAMILIES: dict[str, dict[str, Any]] = {
    "cwm": {"head_dim": 16, "sliding_window": 24, "bos_token_id": 0},
    "granite": {
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
    },
    "llama": {"attention_bias": True},
    "ministral": {"head_dim": 16, "sliding_window": 24},
    "mistral": {"sliding_window": 24},
    "phi3": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "seed_oss": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
}


def random_family(name: str, seed: int, layers: int = 2) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    config = AutoConfig.for_model(name, **{**settings, **FAMILIES[name]})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def embedded(request: pytest.FixtureRequest) -> HybridGenerator:
    return HybridGenerator(device="cpu", dtype=request.param)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def tiny(request: pytest.FixtureRequest, tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=request.param)


def tokens(generator: HybridGenerator, prompt: object, strategy: str, **options: object) -> list:
    settings = {"max_new_tokens": 40, "temperature": 0.0, "print_stats": False, **options}
    return generator.generate(prompt, strategy, **settings).tokens


@pytest.fixture(scope="module")
def embedded_alone(embedded: HybridGenerator) -> list:
    return [tokens(embedded, prompt, "llm") for prompt in PROMPTS]


@pytest.fixture(scope="module")
def tiny_alone(tiny: HybridGenerator) -> list:
    return tokens(tiny, PROMPTS, "llm")


@pytest.mark.parametrize("num_drafts", range(1, 16))
def test_greedy_on_the_embedded_pair(
    embedded: HybridGenerator, embedded_alone: list, num_drafts: int
) -> None:
    for prompt, alone in zip(PROMPTS, embedded_alone, strict=True):
        assert tokens(embedded, prompt, "speculative", num_drafts=num_drafts) == alone


@pytest.mark.parametrize("num_drafts", range(1, 16))
def test_greedy_on_a_random_pair(tiny: HybridGenerator, tiny_alone: list, num_drafts: int) -> None:
    assert tokens(tiny, PROMPTS, "speculative", num_drafts=num_drafts) == tiny_alone


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_on_every_family(name: str, dtype: torch.dtype, tiny_tokenizer: object) -> None:
    slm, llm = random_family(name, seed=1, layers=1), random_family(name, seed=2)
    generator = HybridGenerator(
        slm.to(dtype), llm.to(dtype), tokenizer=tiny_tokenizer, device="cpu", dtype=dtype
    )
    alone = tokens(generator, PROMPTS, "llm", max_new_tokens=60, ignore_eos=True)
    for num_drafts in (1, 3, 4, 7, 8, 15):
        options = {"num_drafts": num_drafts, "max_new_tokens": 60, "ignore_eos": True}
        assert tokens(generator, PROMPTS, "speculative", **options) == alone


@pytest.mark.parametrize("name", FAMILIES)
def test_the_llm_alone_is_transformers_greedy(name: str, tiny_tokenizer: object) -> None:
    slm, llm = random_family(name, seed=1, layers=1), random_family(name, seed=2)
    ids = [tiny_tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected = [
        llm.generate(torch.tensor([row]), max_new_tokens=40, do_sample=False)[0, len(row) :]
        for row in ids
    ]
    generator = HybridGenerator(
        slm, llm, tokenizer=tiny_tokenizer, device="cpu", dtype=torch.float32
    )
    found = tokens(generator, ids, "llm")
    assert found == [row.tolist() for row in expected]


def test_the_embedded_llm_alone_is_transformers_greedy() -> None:
    generator = HybridGenerator(device="cpu", dtype=torch.float32)
    from hybridgen.pair import LLM_PATH

    model = AutoModelForCausalLM.from_pretrained(LLM_PATH, dtype=torch.float32)
    for prompt in PROMPTS:
        ids = generator.tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
        assert tokens(generator, prompt, "llm") == expected.tolist()


@pytest.mark.parametrize("seed", range(50))
def test_coupled_is_the_llm_with_that_seed(tiny: HybridGenerator, seed: int) -> None:
    """Each number of drafts writes 100 texts: a fault in one text of 20 shows in 99 % of runs."""
    sampling = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": seed, "max_new_tokens": 24}
    alone = [
        tokens(tiny, prompt, "llm", **{**sampling, "seed": seed + row})
        for row, prompt in enumerate(PROMPTS)
    ]
    coupled = {"verification": "coupled", **sampling}
    first, then = ((1, 4, 9)[(seed + turn) % 3] for turn in (0, 1))
    # Batch mates, ...
    assert tokens(tiny, PROMPTS, "speculative", num_drafts=first, **coupled) == alone
    # ... their order, ...
    options = {**coupled, "seed": [seed + 2, seed + 1, seed], "num_drafts": then}
    assert tokens(tiny, PROMPTS[::-1], "speculative", **options) == alone[::-1]
    # ... and their absence change nothing.
    assert tokens(tiny, PROMPTS[0], "speculative", num_drafts=5, **coupled) == alone[0]


@pytest.mark.parametrize("seed", range(10))
def test_coupled_on_the_embedded_pair(embedded: HybridGenerator, seed: int) -> None:
    options = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "seed": seed}
    alone = tokens(embedded, PROMPTS[0], "llm", **options)
    coupled = {"verification": "coupled", "num_drafts": 1 + seed, **options}
    assert tokens(embedded, PROMPTS[0], "speculative", **coupled) == alone


def test_routing_everything_to_the_llm_is_the_llm(tiny: HybridGenerator) -> None:
    alone = tokens(tiny, PROMPTS, "llm", temperature=0.8, seed=3)
    for strategy in ("uncertainty", "entropy"):
        for count in (1, 3, 16):
            options = {"llm_fraction": 1.0, "llm_consecutive_tokens": count}
            assert tokens(tiny, PROMPTS, strategy, temperature=0.8, seed=3, **options) == alone


def test_routing_nothing_is_the_slm(tiny_pair: TinyPair) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    for prompt in PROMPTS:
        alone = tokens(generator, prompt, "slm", temperature=0.8, seed=3)
        for strategy in ("uncertainty", "entropy"):
            assert (
                tokens(generator, prompt, strategy, temperature=0.8, seed=3, threshold=99.0)
                == alone
            )


def test_verify_exactness_finds_none(embedded: HybridGenerator) -> None:
    report = verify_exactness(embedded, PROMPTS[:2], max_new_tokens=24, num_drafts=(1, 5))
    assert report
    assert report.compared > 0
    assert "0 divergences" in str(report)


def test_verify_exactness_calls_a_bug_a_bug(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridgen.strategies import drafts

    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    verify = drafts.verify_coupled

    def wrong_token(logits: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        new, count, broken = verify(logits, *rest)
        return (new + 1) % 384, count, broken

    monkeypatch.setattr(drafts, "verify_coupled", wrong_token)
    report = verify_exactness(generator, PROMPTS[:1], max_new_tokens=8, num_drafts=(2,))
    assert not report
    assert {divergence.label for divergence in report.divergences} == {"bug"}
    assert all(divergence.margin > 0 for divergence in report.divergences)
