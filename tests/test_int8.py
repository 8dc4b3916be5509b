"""int8 weights: the same promises, said in the statistics, refused by name where they cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair, random_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hybridgen import HybridGenerator, accelerate, hybrid_generate
from hybridgen.engine import loading
from hybridgen.engine.dtypes import cpu_has_bfloat16
from hybridgen.engine.loading import Found
from hybridgen.kernels.linear import reads_plain

PROMPTS = ["def area(radius):\n", "the quick brown fox", "größe straße"]
QUIET: dict[str, Any] = {"max_new_tokens": 30, "print_stats": False}
BFLOAT16 = {"device": "cpu", "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def plain() -> HybridGenerator:
    return HybridGenerator(**BFLOAT16)


@pytest.fixture(scope="module")
def drafting() -> HybridGenerator:
    return HybridGenerator(**BFLOAT16, slm_weights="int8")


@pytest.fixture(scope="module")
def both() -> HybridGenerator:
    return HybridGenerator(**BFLOAT16, slm_weights="int8", llm_weights="int8")


@pytest.mark.parametrize("num_drafts", [1, 4, 15, "auto"])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_an_int8_draft_changes_no_token(
    plain: HybridGenerator, drafting: HybridGenerator, num_drafts: Any, temperature: float
) -> None:
    """Neither of greedy nor of coupled text."""
    for prompt in (PROMPTS[0], PROMPTS):
        options = {**QUIET, "temperature": temperature, "seed": 3}
        alone = plain.generate(prompt, "llm", **options).tokens
        drafted = drafting.generate(
            prompt, num_drafts=num_drafts, verification="coupled", **options
        )
        assert drafted.tokens == alone


def test_in_float32_too_an_int8_draft_changes_no_token() -> None:
    """Where products are compiled; where they are not, it is refused with what to do."""
    in_float32: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    if not reads_plain(torch.float32):
        with pytest.raises(ValueError, match="or 'float32' with the extra cpu"):
            HybridGenerator(**in_float32, slm_weights="int8")
        return
    plain = HybridGenerator(**in_float32)
    drafting = HybridGenerator(**in_float32, slm_weights="int8")
    assert drafting.slm.dtype == torch.float32 and drafting.slm.quantised == "int8"
    assert drafting.slm.weight_bytes < plain.slm.weight_bytes
    options = {**QUIET, "temperature": 0}
    alone = plain.generate(PROMPTS, "llm", **options).tokens
    assert drafting.generate(PROMPTS, num_drafts=4, **options).tokens == alone


@pytest.mark.parametrize("num_drafts", [1, 3, 4, 15])
def test_an_int8_llm_has_a_text_of_its_own_which_no_draft_changes(
    both: HybridGenerator, num_drafts: int
) -> None:
    options = {**QUIET, "temperature": 0.8, "seed": 3, "verification": "coupled"}
    alone = both.generate(PROMPTS, "llm", **QUIET, temperature=0.8, seed=3)
    assert both.generate(PROMPTS, num_drafts=num_drafts, **options).tokens == alone.tokens
    apart = [
        both.generate(p, num_drafts=num_drafts, **options | {"seed": 3 + i})
        for i, p in enumerate(PROMPTS)
    ]
    assert [one.tokens for one in apart] == alone.tokens


def test_drafts_are_accepted_nearly_as_often(
    plain: HybridGenerator, drafting: HybridGenerator
) -> None:
    """At most two points fewer: greedy, four drafts, four texts of 100 tokens."""
    prompts = [*PROMPTS, "import torch\n\n\nclass"]
    rates = [
        generator.generate(
            prompts,
            num_drafts=4,
            temperature=0,
            max_new_tokens=100,
            ignore_eos=True,
            print_stats=False,
        ).stats["acceptance_rate"]
        for generator in (plain, drafting)
    ]
    assert rates[1] > rates[0] - 0.02


def test_statistics_say_which_weights_are_used(
    plain: HybridGenerator, drafting: HybridGenerator, both: HybridGenerator, capsys: Any
) -> None:
    result = drafting.generate("a", **QUIET)
    assert result.stats["slm_weights"] == "int8" and "llm_weights" not in result.stats
    assert "SLM weights: int8\n" in result.summary and "LLM weights" not in result.summary
    batch = both.generate(["a", "b"], **QUIET).stats
    assert batch["llm_weights"] == batch["rows"][1]["slm_weights"] == "int8"
    assert "slm_weights" not in plain.generate("a", **QUIET).stats
    assert repr(drafting.slm) == "Decoder(qwen3, bfloat16, int8 weights, cpu)"
    assert repr(plain.slm) == "Decoder(qwen3, bfloat16, cpu)"


# --- what is held ---


def test_weights_take_a_byte_each(plain: HybridGenerator, both: HybridGenerator) -> None:
    for before, after in ((plain.slm, both.slm), (plain.llm, both.llm)):
        weights = after.weights
        products = [one for layer in weights.layers for one in layer.products]
        for one in (*products, weights.head):
            assert one.weight.dtype == torch.int8
            assert one.scale is not None and one.scale.shape == one.weight.shape[:1]
        assert weights.embedding.dtype == torch.bfloat16 and not weights.is_tied
        assert torch.equal(weights.embedding, before.weights.embedding)
        assert weights.layers[0].qk_norm.dtype == before.weights.layers[0].qk_norm.dtype
        assert after.weight_bytes < 0.52 * before.weight_bytes


@pytest.mark.skipif(
    not (cpu_has_bfloat16() or reads_plain(torch.float32)), reason="int8 is refused here"
)
def test_an_int8_model_computes_in_float32_where_its_products_are_compiled(
    tiny_pair: TinyPair,
) -> None:
    """And in bfloat16 where a processor has that alone, though a plain one so small would not."""
    generator = HybridGenerator(*tiny_pair, device="cpu", slm_weights="int8")
    compiled = reads_plain(torch.float32)
    assert generator.slm.dtype == (torch.float32 if compiled else torch.bfloat16)
    assert generator.slm.prompt_dtype == (torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
    assert generator.llm.dtype == generator.llm.prompt_dtype == torch.float32
    assert generator.generate("the quick", **QUIET).stats["total_tokens"] == 30


def test_a_loaded_model_keeps_its_own_weights(tiny_pair: TinyPair, tiny_tokenizer: Any) -> None:
    slm = random_model(384, 1, 32, seed=1).bfloat16()
    before = {name: value.clone() for name, value in slm.state_dict().items()}
    llm = AutoModelForCausalLM.from_pretrained(tiny_pair.llm)
    generator = HybridGenerator(
        slm, llm, tokenizer=tiny_tokenizer, device="cpu", slm_weights="int8"
    )
    generator.generate("the quick", **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in slm.state_dict().items())
    assert generator.slm.weights.embedding.data_ptr() == slm.model.embed_tokens.weight.data_ptr()
    assert slm.lm_head.weight.dtype == torch.bfloat16


# --- doors ---


def test_the_transformers_doors_take_them() -> None:
    slm, llm = random_model(384, 1, 32, seed=1).bfloat16(), random_model(384, 2, 64, seed=2)
    inputs = torch.tensor([[7, 8, 9]])
    expected = llm.generate(inputs, do_sample=False, max_new_tokens=20, eos_token_id=None)
    fast = accelerate(llm, slm, slm_weights="int8")
    options = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
    assert torch.equal(fast.generate(inputs, **options), expected)
    given = {"custom_generate": hybrid_generate, "slm": slm, "slm_weights": "int8"}
    assert torch.equal(llm.generate(inputs, **options, **given), expected)
    engines = vars(llm)["_hybridgen_engines"]
    assert [engine.pair.quantised for engine in engines.values()] == [{"slm_weights": "int8"}]
    plain = accelerate(llm, slm)
    assert torch.equal(plain.generate(inputs, **options), expected)
    assert [engine.pair.quantised for engine in engines.values()] == [{"slm_weights": "int8"}, {}]
    for name in ("slm_weights", "llm_weights"):
        with pytest.raises(ValueError, match=f"^{name} must be one of 'int8', got 'int4'"):
            accelerate(llm, slm, **{name: "int4"})


def test_other_dtypes_are_refused_on_a_cpu_before_weights_are_read(
    tiny_pair: TinyPair, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Found, "load", never)
    monkeypatch.setattr(loading, "reads_plain", lambda dtype: False)  # as without the extra cpu
    for dtype in ("float32", "float16"):
        with pytest.raises(
            ValueError, match=rf"^llm_weights='int8' takes dtype='bfloat16' .* got {dtype}"
        ):
            HybridGenerator(*tiny_pair, device="cpu", dtype=dtype, llm_weights="int8")
    slm = random_model(384, 1, 32, seed=1)
    with pytest.raises(ValueError, match=r"^slm_weights='int8' takes dtype='bfloat16'"):
        HybridGenerator(
            slm, tiny_pair.llm, tokenizer=tiny_tokenizer, device="cpu", slm_weights="int8"
        )


def test_what_they_need_is_said(tiny_pair: TinyPair, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^slm_weights='int8' asks for an SLM"):
        HybridGenerator(llm_model_id=tiny_pair.llm, **BFLOAT16, slm_weights="int8")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=384)).save_pretrained(
        tmp_path
    )
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^llm_weights='int8' takes a model that the native .*gpt2"
    ):
        HybridGenerator(llm_model_id=tmp_path, **BFLOAT16, llm_weights="int8")
    broken = random_model(384, 1, 32, seed=1).bfloat16()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[3, 4] = torch.inf
    with pytest.raises(
        ValueError, match=r"^slm_model_id: .*row 3 of the weight has NaN or infinity"
    ):
        HybridGenerator(
            broken, tiny_pair.llm, tokenizer=tiny_tokenizer, **BFLOAT16, slm_weights="int8"
        )
