"""A checkpoint of bfloat16 that float32 is computed with: half the bytes, the same model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, at, random_model, random_tokens, reference_logits
from transformers import AutoModelForCausalLM

from hybridgen import HybridGenerator
from hybridgen.engine import dtypes
from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loading import load, look
from hybridgen.kernels import linear
from hybridgen.pair import LLM_PATH

CPU = torch.device("cpu")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    decoder = load(folder, "llm_model_id", CPU, dtype)
    assert isinstance(decoder, Decoder)
    return decoder


def kept(decoder: Decoder) -> set[torch.dtype]:
    """The dtypes of its matrices."""
    weights = decoder.weights
    products = [one for layer in weights.layers for one in layer.products]
    return {one.weight.dtype for one in (*products, weights.head)} | {weights.embedding.dtype}


@pytest.mark.parametrize("family", CONFIGS)
def test_it_is_the_model_in_float32(family: str, tmp_path: Path) -> None:
    """Whose weights are those of the checkpoint; biases, norms and multipliers too."""
    random_model(family, torch.bfloat16).save_pretrained(tmp_path)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    decoder = loaded(tmp_path)
    assert kept(decoder) == {torch.bfloat16} and decoder.dtype == torch.float32
    tokens = random_tokens(1, 70)
    decoder.bind(Arena([decoder.cache_layout()], 1, 256, "cpu").caches[0])
    expected = reference_logits(wide, tokens)
    found = torch.cat([decoder(tokens[:, i : i + 7], at(i)) for i in range(0, 70, 7)], 1)
    assert found.dtype == torch.float32
    # bfloat16 would be off by a hundredth of their spread.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_a_prompt_is_read_in_float32(tmp_path: Path) -> None:
    """By products of few rows and of many."""
    random_model("qwen2", torch.bfloat16).save_pretrained(tmp_path)
    decoder = loaded(tmp_path)
    tokens = random_tokens(1, 200)
    caches = [Arena([decoder.cache_layout()], 1, 256, "cpu").caches[0] for _ in range(2)]
    decoder.bind(caches[0])
    decoder.prefill(tokens, [200])
    decoder.bind(caches[1])
    for i in range(0, 200, 8):
        decoder(tokens[:, i : i + 8], at(i))
    written = [cache[..., :200, :] for cache in caches]
    torch.testing.assert_close(*written, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "granite"])  # with biases, and with multipliers
@pytest.mark.parametrize("int8", [False, True], ids=["narrow", "int8"])
def test_a_processor_with_bfloat16_reads_prompts_in_it(
    family: str, int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the caller names no dtype: steps stay float32, and prompts as long as one."""
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: True)
    random_model(family, torch.bfloat16).save_pretrained(tmp_path)
    model = look(tmp_path, "llm_model_id")
    found = model.as_int8("llm_weights") if int8 else model
    read = {}
    for dtype in (None, torch.float32):
        decoder = found.load(CPU, dtype)
        assert isinstance(decoder, Decoder)
        assert decoder.dtype == torch.float32
        assert decoder.prompt_dtype == (dtype or torch.bfloat16)
        decoder.bind(Arena([decoder.cache_layout()], 2, 256, "cpu").caches[0])
        tokens = random_tokens(2, 200)
        decoder.prefill(tokens, [200, linear.FEW_ROWS])
        cache = decoder.cache.clone()
        read[dtype] = [
            cache[..., row, :count, :] for row, count in ((0, 200), (1, linear.FEW_ROWS))
        ]
    (long, short), (wide_long, wide_short) = read[None], read[torch.float32]
    assert torch.equal(short, wide_short)
    off = (long - wide_long).abs().max() / wide_long.std()
    assert 1e-3 < off < 0.1  # roundings of 2 ** -9 of what is summed


def test_it_takes_half_the_memory_and_says_so_before(tmp_path: Path) -> None:
    random_model("llama", torch.bfloat16).save_pretrained(tmp_path)
    decoder, parameters = loaded(tmp_path), random_model("llama").num_parameters()
    vectors = sum(t.numel() for t in decoder.weights.tensors() if t.dim() == 1)
    assert decoder.nbytes == 2 * parameters + 2 * vectors
    needed = look(tmp_path, "llm_model_id").footprint(CPU, torch.float32).weights
    assert needed == 2 * parameters


@pytest.mark.parametrize(
    "stored, options, dtype, wanted",
    [
        (torch.float32, {}, torch.float32, torch.float32),
        (torch.bfloat16, {"hidden_size": 40}, torch.float32, torch.float32),
        (torch.bfloat16, {}, torch.bfloat16, torch.bfloat16),
        (torch.float32, {}, torch.bfloat16, torch.bfloat16),
        (torch.float16, {}, torch.float32, torch.float32),
    ],
    ids=["of float32", "of odd depths", "in bfloat16", "made bfloat16", "of float16"],
)
def test_others_are_kept_as_they_are_computed_in(
    stored: torch.dtype,
    options: dict[str, Any],
    dtype: torch.dtype,
    wanted: torch.dtype,
    tmp_path: Path,
) -> None:
    random_model("qwen3", stored, **options).save_pretrained(tmp_path)
    assert kept(loaded(tmp_path, dtype)) == {wanted}


def test_without_compiled_products_none_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model("qwen3", torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr(linear, "has_numba", lambda: False)
    assert kept(loaded(tmp_path)) == {torch.float32}


def test_a_loaded_model_keeps_its_own() -> None:
    model = random_model("qwen3", torch.bfloat16)
    decoder = load(model, "llm_model_id", CPU, torch.float32)
    assert isinstance(decoder, Decoder)
    assert kept(decoder) == {torch.float32} == {p.dtype for p in model.parameters()}


@pytest.mark.parametrize("strategy", ["llm", "speculative"])
def test_greedy_text_is_that_of_transformers(strategy: str) -> None:
    generator = HybridGenerator(device="cpu", dtype="float32")
    assert kept(generator.llm) == kept(generator.slm) == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(LLM_PATH, dtype=torch.float32)
    prompt = "def area(radius):\n"
    ids = torch.tensor([generator.tokenizer(prompt).input_ids])
    plain = {"max_new_tokens": 60, "do_sample": False, "repetition_penalty": 1.0}
    expected = model.generate(ids, **plain)[0, ids.shape[1] :]
    found = generator.generate(
        prompt,
        strategy,
        max_new_tokens=60,
        temperature=0,
        repetition_penalty=1.0,
        print_stats=False,
    )
    assert found.tokens == expected.tolist()
