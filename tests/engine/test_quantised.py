"""The native decoder with int8 weights: what it computes, and what it holds while they are made."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, at, random_model, random_tokens, reference_logits

from hybridgen.engine import decoder as decoder_module
from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loading import look
from hybridgen.kernels import linear
from hybridgen.kernels.quantise import dequantise, quantise

CPU = torch.device("cpu")


def int8(model: Any, **options: Any) -> Decoder:
    decoder = Decoder.from_model(model, **options)
    decoder.quantise()
    decoder.bind(Arena([decoder.cache_layout()], 1, 256, "cpu").caches[0])
    return decoder


@torch.no_grad()
def rounded(model: Any) -> Any:
    """``model`` with the weights that int8 ones stand for."""
    for name, module in model.named_modules():
        if name.endswith("_proj") or name == "lm_head":
            module.weight.copy_(dequantise(*quantise(module.weight)))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_weights_that_int8_stands_for(kind: str) -> None:
    """In float32, through the references; in parts as transformers has them or not."""
    tokens = random_tokens(1, 20)
    decoder = int8(random_model(kind, tie_word_embeddings=False))
    expected = reference_logits(rounded(random_model(kind, tie_word_embeddings=False)), tokens)
    assert torch.allclose(decoder(tokens[:, :12], at(0)), expected[:, :12], atol=1e-4)
    decoder.prefill(tokens, [19])
    assert torch.allclose(decoder(tokens[:, 19:], at(19)), expected[:, 19:], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_logits_have_their_bits_in_any_company(dtype: torch.dtype) -> None:
    """Of one token, of several, and of more than torch's kernel takes at once."""
    tokens = random_tokens(1, 30)
    decoder = int8(random_model("qwen3", dtype))
    together = decoder(tokens, at(0))
    for count in (1, 2, 5, 16):
        parts = [decoder(part, at(count * i)) for i, part in enumerate(tokens.split(count, 1))]
        assert torch.equal(torch.cat(parts, 1), together)


def test_on_a_cpu_a_step_is_computed_by_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernel = [], torch._weight_int8pack_mm

    def counted(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return kernel(x, *rest)

    decoder = int8(random_model("qwen3", torch.bfloat16), batch_invariant=False)
    monkeypatch.setattr(torch, "_weight_int8pack_mm", counted)
    monkeypatch.setattr(linear, "has_numba", lambda: False)  # of a processor that has bfloat16
    decoder(random_tokens(1, 2), at(0))
    assert calls == [2] * (2 * 4 + 1)


def test_a_tied_head_is_a_copy() -> None:
    model = random_model("llama", tie_word_embeddings=True)
    before = model.lm_head.weight.detach().clone()
    decoder = int8(model)
    assert torch.equal(decoder.weights.embedding, before)
    assert decoder.weights.head.weight.dtype == torch.int8
    assert torch.equal(model.lm_head.weight, before)


def live_bytes() -> int:
    """Of all tensors there are, each storage once."""
    held = {}
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and one.device.type == "cpu":
            storage = one.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_no_more_is_held_while_weights_are_made_int8_than_of_plain_ones(
    stored: torch.dtype, computed: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the one product at hand; and in the end it is what was told before."""
    if computed == torch.float32 and not linear.reads_plain(computed):
        pytest.skip("int8 is refused here")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    model = random_model("qwen3", stored, **sizes)
    model.save_pretrained(tmp_path)
    del model
    found = look(tmp_path, "slm_model_id")
    gc.collect()
    before, held = live_bytes(), []
    plain = found.footprint(CPU, computed).weights
    largest = 2 * 512 * 256
    make = decoder_module.quantise_for_cpu

    def counted(weight: torch.Tensor, dtype: torch.dtype) -> Any:
        made = make(weight, dtype)
        held.append(live_bytes() - before)
        return made

    monkeypatch.setattr(decoder_module, "quantise_for_cpu", counted)
    asked = found.as_int8("slm_weights")
    decoder = asked.load(CPU, computed, batch_invariant=False)
    assert len(held) == 4 * 4 + 1
    assert max(held) <= 1.01 * plain + largest
    assert held[-2] < 0.6 * plain
    expected = asked.footprint(CPU, computed).weights
    assert expected == pytest.approx(decoder.nbytes, rel=0.01)
    assert live_bytes() - before == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_what_copies_beside_a_loaded_model_take_is_told(tied: bool) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": tied}
    sizes |= {"vocab_size": 2000}
    found = look(random_model("qwen3", torch.bfloat16, **sizes), "slm_model_id")
    assert found.footprint(CPU).weights == 0
    decoder = found.as_int8("slm_weights").load(CPU)
    copies = decoder.nbytes - sum(
        tensor.nbytes for tensor in decoder.weights.tensors() if tensor.dtype == torch.bfloat16
    )
    told = found.as_int8("slm_weights").footprint(CPU).weights
    assert told == pytest.approx(copies, rel=0.02)
