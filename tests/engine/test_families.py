"""Which models the native decoder takes, and that it shares their memory."""

from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, at, bound, random_model, random_tokens, reference_logits
from torch import nn
from transformers import (
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from hybridgen.engine.families import FAMILIES, check, refusal
from hybridgen.engine.weights import fuse


def storages(tensors: Any) -> dict[int, int]:
    """Address -> bytes of the distinct storages behind ``tensors``."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_model_and_the_decoder_share_one_copy_of_the_weights(kind: str, tied: bool) -> None:
    options = {"attention_bias": True} if kind in ("llama", "qwen3") else {}
    model = random_model(kind, tie_word_embeddings=tied, **options)
    before = sum(storages(model.parameters()).values())
    weights = fuse(model)
    shared = storages(model.parameters())
    ours = storages(weights.tensors())
    assert sum(shared.values()) == before
    small = sum(layer.qk_norm.nbytes for layer in weights.layers if layer.qk_norm is not None)
    if kind == "granite":
        small += weights.norm.nbytes  # it carries the multiplier of the logits
    assert sum({**shared, **ours}.values()) == before + small
    assert (weights.head.weight is weights.embedding) == tied


def test_the_model_still_works_after_fusing() -> None:
    model = random_model("qwen2")
    tokens = random_tokens(1, 10)
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    mask = torch.ones_like(tokens)
    before = model.generate(tokens, attention_mask=mask, **settings)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = bound(model)
    assert torch.equal(model.generate(tokens, attention_mask=mask, **settings), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # One memory: a change of the model is a change of the decoder.
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(2)
        model.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    ours = decoder(tokens, at(0))
    assert torch.allclose(ours, reference_logits(model, tokens), atol=1e-4)


def test_fusing_twice_is_harmless() -> None:
    model = random_model("qwen3")
    tokens = random_tokens(1, 5)
    first, second = bound(model), bound(model)
    assert torch.equal(first(tokens, at(0)), second(tokens, at(0)))


@pytest.mark.parametrize("kind", FAMILIES)
def test_decoders_of_one_model_share_its_weights(kind: str) -> None:
    model = random_model(kind, **({"attention_bias": True} if kind == "llama" else {}))
    first, second = fuse(model), fuse(model)
    small = {layer.qk_norm.data_ptr() for layer in second.layers if layer.qk_norm is not None}
    if kind == "granite":
        small.add(second.norm.data_ptr())
    for ours, theirs in zip(first.tensors(), second.tensors(), strict=True):
        assert ours.shape == theirs.shape and torch.equal(ours, theirs)
        assert ours.data_ptr() == theirs.data_ptr() or theirs.data_ptr() in small
    if kind == "phi3":
        return  # its products are whole in the checkpoint
    # Parts that only lie in one memory, in another order or with a gap, are not the whole.
    attention = model.model.layers[0].self_attn
    q, k = attention.q_proj.weight.data, attention.k_proj.weight.data
    attention.k_proj.weight.data = k[: len(k) // 2].repeat(2, 1)
    third = fuse(model)
    assert torch.equal(third.layers[0].qkv.weight[len(q) : len(q) + len(k) // 2], k[: len(k) // 2])
    assert third.layers[0].qkv.weight.data_ptr() != first.layers[0].qkv.weight.data_ptr()


def test_map_changes_every_tensor_once() -> None:
    weights = fuse(random_model("qwen3", tie_word_embeddings=True))
    halves = weights.map(lambda tensor: tensor.half())
    assert {tensor.dtype for tensor in halves.tensors()} == {torch.float16}
    assert halves.is_tied
    assert len(halves.tensors()) == 2 + 2 * 7
    assert [layer.window for layer in halves.layers] == [0, 0]
    scaled = fuse(random_model("granite"))
    assert scaled.map(lambda tensor: tensor.half()).scale == scaled.scale != 1


# --- refusals ---

SUPPORTED = (
    "Supported model types: cwm, granite, llama, ministral, mistral, phi3, qwen2, qwen3, seed_oss, "
    "smollm3"
)

REFUSED = [
    (MambaConfig(), "MambaConfig.*roll back"),
    (Qwen3NextConfig(num_hidden_layers=4), "Qwen3NextConfig.*roll back"),
    (GPT2Config(), "'gpt2' has no native decoder"),
    (LlamaConfig(hidden_act="gelu"), "hidden_act='gelu'"),
    (
        Qwen3Config(
            head_dim=8,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "factor": 2.0,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0] * 4,
                "original_max_position_embeddings": 64,
            },
        ),
        "rope type 'longrope'",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=lambda x: type(x).__name__)
def test_other_models_are_refused_by_name(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check(config)
    assert SUPPORTED in str(caught.value)


QWEN_WINDOW = {"use_sliding_window": True, "max_window_layers": 0}


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "4", 2**40])
@pytest.mark.parametrize(
    ("kind", "options"), [("mistral", {}), ("qwen2", QWEN_WINDOW), ("qwen3", QWEN_WINDOW)]
)
def test_windows_that_would_hide_everything_are_refused(
    kind: str, options: dict[str, Any], window: Any
) -> None:
    """To transformers 0 and less are windows in which a token does not see itself."""
    config = CONFIGS[kind](sliding_window=8, **options)
    object.__setattr__(config, "sliding_window", window)
    with pytest.raises(ValueError, match=f"{kind}: sliding_window must be"):
        check(config)


def test_windows_that_are_not_in_use_pass() -> None:
    assert refusal(MistralConfig(sliding_window=None)) is None
    for window in (0, -1, 4096):
        assert refusal(Qwen3Config(sliding_window=window)) is None


def test_sliding_layers_without_a_window_are_refused() -> None:
    config = Qwen3Config(num_hidden_layers=1, layer_types=["sliding_attention"])
    with pytest.raises(ValueError, match=r"sliding_window must be .* got None"):
        check(config)


@pytest.mark.parametrize(
    ("kind", "layer", "known"),
    [
        ("llama", "chunked_attention", "only full_attention is"),
        ("llama", "sliding_attention", "only full_attention is"),
        ("qwen3", "chunked_attention", "only full_attention and sliding_attention is"),
        ("qwen2", "attention", "only full_attention and sliding_attention is"),
    ],
)
def test_layers_of_other_attention_are_refused(kind: str, layer: str, known: str) -> None:
    config = CONFIGS[kind](num_hidden_layers=2)
    config.layer_types = ["full_attention", layer]
    with pytest.raises(ValueError, match=f"{kind} with {layer} in layer_types: {known}"):
        check(config)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads cannot share 3 keys and values"):
        check(LlamaConfig(num_attention_heads=4, num_key_value_heads=3, head_dim=16))
    for kind in ("qwen3", "smollm3"):
        config = CONFIGS[kind](num_hidden_layers=2)
        config.num_hidden_layers = 3
        if kind == "smollm3":
            config.layer_types = ["full_attention"] * 3
        with pytest.raises(ValueError, match=r"(layer_types|no_rope_layers) has 2 .* for 3 layers"):
            check(config)
    config = Qwen3Config(num_hidden_layers=2)
    config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="layer_types has 2 entries for 3 layers"):
        check(config)
    for value in (0, -1, 2.0, None):
        object.__setattr__(config, "num_key_value_heads", value)
        with pytest.raises(ValueError, match="qwen3: num_key_value_heads must be an integer >= 1"):
            check(config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-6, "1e-6", None, True])
def test_a_norm_without_sense_is_refused(value: Any) -> None:
    config = LlamaConfig()
    object.__setattr__(config, "rms_norm_eps", value)
    with pytest.raises(ValueError, match="llama: rms_norm_eps must be a finite number >= 0"):
        check(config)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "12", None])
def test_multipliers_without_sense_are_refused(value: Any) -> None:
    config = CONFIGS["granite"]()
    object.__setattr__(config, "residual_multiplier", value)
    with pytest.raises(
        ValueError, match="granite: residual_multiplier must be a finite number > 0"
    ):
        check(config)


@pytest.mark.parametrize("kind", FAMILIES)
def test_native_families_are_not_refused(kind: str) -> None:
    assert refusal(CONFIGS[kind]()) is None


def test_layers_that_are_not_plain_are_refused() -> None:
    class Adapted(nn.Linear):
        pass

    model = random_model("llama")
    model.model.layers[1].mlp.down_proj = Adapted(80, 48, bias=False)
    with pytest.raises(ValueError, match=r"1\.mlp\.down_proj is Adapted"):
        fuse(model)


def test_mixed_dtypes_are_refused() -> None:
    model = random_model("llama")
    model.lm_head.half()
    with pytest.raises(ValueError, match="one device and dtype"):
        fuse(model)


def test_partial_rotary_embeddings_are_refused() -> None:
    parameters = {
        "rope_type": "linear",
        "rope_theta": 1e4,
        "factor": 2.0,
        "partial_rotary_factor": 0.5,
    }
    with pytest.raises(ValueError, match="partial rotary"):
        bound(random_model("llama", rope_parameters=parameters))
