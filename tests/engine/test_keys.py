"""A checkpoint must be that of the model in its config: no weight is made up, none of another."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, edit_json, edit_weights, save_random, shard
from tiny_models import at, random_model, random_tokens, reference_logits

from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.families import FAMILIES
from hybridgen.engine.loading import load, load_model

Change = Callable[[Tensors], Tensors]
UP = "model.layers.1.mlp.up_proj.weight"
Q_NORM = "model.layers.0.self_attn.q_norm.weight"


def renamed(rename: Callable[[str], str]) -> Change:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def without(*names: str) -> Change:
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


def with_new(name: str, size: int = 4) -> Change:
    return lambda tensors: {**tensors, name: torch.ones(size)}


def logits(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    model.bind(Arena([model.cache_layout()], 1, 256, "cpu").caches[0])
    return model(tokens, at(0))


def eagle_head(tensors: Tensors) -> Tensors:
    layer = {k.removeprefix("model."): v for k, v in tensors.items() if ".layers.0." in k}
    return {**layer, "fc.weight": torch.ones(48, 96)}


MISSING: list[tuple[str, Change, str]] = [
    ("a dropped tensor", without(UP), rf"they lack {UP}"),
    ("no head", without("lm_head.weight"), r"they lack lm_head\.weight"),
    (
        "a renamed head",
        renamed(lambda name: name.replace("lm_head", "output")),
        r"they lack lm_head\.weight; of unknown names are output\.weight",
    ),
    ("compiled", renamed("_orig_mod.{}".format), r"they lack .* names are _orig_mod\.\S+"),
    ("data parallel", renamed("module.{}".format), r"they lack .* names are module\.\S+"),
    (
        "FSDP",
        renamed(lambda name: name.replace("layers.", "layers._fsdp_wrapped_module.")),
        r"they lack .* names are \S+_fsdp_wrapped_module",
    ),
    ("no tensors", lambda tensors: {}, "(hold no weights|weight_map must say)"),
    ("empty tensors", lambda tensors: {k: v[:0] for k, v in tensors.items()}, "hold no weights"),
    ("one empty tensor", lambda t: {**t, UP: t[UP][:0]}, rf"{UP} \(0 x 48, not 80 x 48\)"),
    ("an EAGLE head", eagle_head, r"they lack lm_head\.weight, model\.embed_tokens\.weight"),
    ("another shape", lambda t: {**t, UP: t[UP].T}, rf"{UP} \(48 x 80, not 80 x 48\)"),
    ("a number", lambda t: {**t, UP: torch.ones(())}, rf"{UP} \(one number, not 80 x 48\)"),
]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in MISSING], ids=[case[0] for case in MISSING]
)
def test_incomplete_weights_are_refused_by_name(
    tmp_path: Path, change: Change, message: str, sharded: bool
) -> None:
    edit_weights(save_random(tmp_path, "llama"), change)
    if sharded:
        shard(tmp_path)
    for read in (load, load_model):
        with pytest.raises(ValueError, match=rf"(?s)^llm_model_id: cannot load .*{message}"):
            read(tmp_path, "llm_model_id", "cpu")


@pytest.mark.parametrize(
    ("kind", "labelled", "message"),
    [
        ("qwen3", "llama", r"LlamaForCausalLM, which has no \S+k_norm\.weight"),
        ("qwen2", "llama", r"LlamaForCausalLM, which has no \S+k_proj\.bias"),
        ("qwen2", "mistral", r"which has no \S+k_proj\.bias"),
        ("llama", "qwen3", r"they lack \S+k_norm\.weight"),
        ("llama", "qwen2", r"they lack \S+k_proj\.bias"),
    ],
)
def test_a_wrong_label_is_refused(tmp_path: Path, kind: str, labelled: str, message: str) -> None:
    save_random(tmp_path, kind)
    edit_json(tmp_path, model_type=labelled, architectures=None, layer_types=...)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "slm_model_id", "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.mlp.up_proj.weight",  # a layer more than config.json says
        "layers.7.input_layernorm.weight",
        "model.layers.0.self_attn.sinks",
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.norm.bias",
        "norm.bias",
        "lm_head.bias",
        "lm_head.weight_scale",
        "ema.model.norm.weight",
        "_orig_mod.lm_head.weight",
    ],
)
def test_tensors_that_would_change_the_model_are_refused(tmp_path: Path, name: str) -> None:
    edit_weights(save_random(tmp_path, "llama"), with_new(name))
    with pytest.raises(ValueError, match=rf"of another model than Llama\w+, which has no {name}"):
        load(tmp_path, "slm_model_id", "cpu")


def test_tensors_that_hang_off_the_model_are_named_in_a_warning(tmp_path: Path) -> None:
    names = ["value_head.weight", "model.vision_projector.weight", "medusa_head.0.linear.weight"]
    for name in names:
        edit_weights(save_random(tmp_path, "llama"), with_new(name))
        with pytest.warns(UserWarning, match=f"LlamaForCausalLM does not use: {name}"):
            load(tmp_path, "slm_model_id", "cpu")
    for i in range(200):
        names.append(f"score.{i}.weight")
    edit_weights(tmp_path, lambda tensors: {**tensors, **{n: torch.ones(2) for n in names}})
    with pytest.warns(UserWarning, match=r"and 199 more$") as caught:
        load(tmp_path, "slm_model_id", "cpu")
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 400


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("change", ["nothing", "base model", "old buffers", "sharded", "half tied"])
def test_what_transformers_declares_harmless_passes(tmp_path: Path, kind: str, change: str) -> None:
    options: dict[str, Any] = {"tie_word_embeddings": change in ("base model", "half tied")}
    save_random(tmp_path, kind, **options)
    if change == "base model":
        edit_weights(tmp_path, renamed(lambda name: name.removeprefix("model.")))
    elif change == "old buffers":
        edit_weights(tmp_path, with_new("model.layers.0.self_attn.rotary_emb.inv_freq", 8))
    elif change == "sharded":
        shard(tmp_path, parts=3)
    tokens = random_tokens(1, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = load(tmp_path, "llm_model_id", "cpu", torch.float32)
    expected = reference_logits(random_model(kind, **options), tokens)
    assert torch.allclose(logits(decoder, tokens), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.int32])
def test_weights_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    edit_weights(save_random(tmp_path, "llama"), lambda t: {**t, UP: t[UP].to(dtype)})
    with pytest.raises(ValueError, match=rf"must be stored as .* not as {UP} \([A-Z0-9]+\)"):
        load(tmp_path, "llm_model_id", "cpu")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_floats_of_every_size_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    edit_weights(save_random(tmp_path, "llama"), lambda t: {k: v.to(dtype) for k, v in t.items()})
    wanted = random_model("llama").model.norm.weight.to(dtype).float()
    norm = load(tmp_path, "llm_model_id", "cpu", torch.float32).weights.norm
    assert torch.equal(norm, wanted)


@pytest.mark.parametrize("as_object", [False, True])
def test_weights_of_nothing_but_zeros_are_refused(tmp_path: Path, as_object: bool) -> None:
    model = random_model("llama")
    torch.nn.init.zeros_(model.model.norm.weight)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"llm_model_id: .*final norm is all zeros"):
        load(model if as_object else tmp_path, "llm_model_id", "cpu")
