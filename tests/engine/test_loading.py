"""Models come from folders, ids or memory; what cannot be loaded says which argument is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, edit_weights
from foreign_models import foreign_model
from tiny_models import at, random_model, random_tokens, reference_logits
from transformers import (
    AutoConfig,
    GPT2Model,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
)

from hybridgen.engine import families
from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.families import check_can_run, refusal
from hybridgen.engine.loading import load, load_model, look
from hybridgen.engine.tokenizers import load_tokenizer
from hybridgen.engine.transformers_decoder import TransformersDecoder

CPU = torch.device("cpu")


def first_logits(decoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    decoder.bind(Arena([decoder.cache_layout()], 1, 256, "cpu").caches[0])
    return decoder(tokens, at(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model("qwen3").save_pretrained(tmp_path)
    return tmp_path


def test_a_folder(folder: Path) -> None:
    tokens = random_tokens(1, 6)
    expected = reference_logits(random_model("qwen3"), tokens)
    for name in (folder, str(folder)):
        decoder = load(name, "llm_model_id", CPU, torch.float32)
        assert torch.allclose(first_logits(decoder, tokens), expected, atol=1e-4)
    assert decoder.config.model_type == "qwen3"
    assert decoder.generation_config is not None


def test_a_loaded_model_keeps_its_dtype_and_is_shared() -> None:
    model = random_model("qwen3", torch.bfloat16).train()
    decoder = load(model, "llm_model_id", "cpu", batch_invariant=False)
    assert decoder.dtype == torch.bfloat16
    assert not decoder.batch_invariant
    assert not model.training
    assert decoder.weights.embedding.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_a_loaded_model_takes_the_dtype_asked_for() -> None:
    model = random_model("qwen3")
    assert load(model, "llm_model_id", "cpu", torch.bfloat16).dtype == torch.bfloat16
    assert model.dtype == torch.bfloat16


def test_the_dtype_of_a_folder(folder: Path) -> None:
    assert load(folder, "slm_model_id", CPU, torch.bfloat16).dtype == torch.bfloat16
    assert load(folder, "slm_model_id", CPU).dtype == torch.float32  # small: fastest in float32


def test_looking_costs_no_weights_and_says_what_they_will_be(folder: Path) -> None:
    found = look(folder, "slm_model_id")
    decoder = found.load(CPU, torch.bfloat16)
    assert found.max_positions == decoder.max_positions == 1024
    assert found.cache_layout(CPU, torch.bfloat16) == decoder.cache_layout()
    assert found.dtype(CPU) == torch.float32
    model = random_model("qwen3", torch.bfloat16)
    assert look(model, "slm_model_id").dtype(CPU) == torch.bfloat16


def test_a_config_is_checked_once_a_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(config: Any) -> str | None:
        calls.append(config)
        return refusal(config)

    monkeypatch.setattr(families, "refusal", counted)
    for source in (folder, random_model("qwen3")):
        load(source, "llm_model_id", CPU)
        assert len(calls) == 1
        calls.clear()
    Decoder.from_model(random_model("qwen3"))  # nobody has looked at this one
    assert len(calls) == 1


def test_a_model_that_was_cut_by_hand_runs_as_in_transformers() -> None:
    tokens = random_tokens(1, 6)
    for cut in ("modules", "config"):
        model = random_model("llama", num_hidden_layers=4)
        if cut == "modules":
            model.model.layers = model.model.layers[:2]
        else:
            model.config.num_hidden_layers = 2
        expected = reference_logits(model, tokens)
        decoder = load(model, "llm_model_id", CPU)
        assert torch.allclose(first_logits(decoder, tokens), expected, atol=1e-4)


# --- other families, through transformers ---


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "mixtral"])
def test_a_folder_of_another_family(kind: str, tmp_path: Path) -> None:
    model, tokens = foreign_model(kind), random_tokens(1, 16)
    model.save_pretrained(tmp_path)
    found = look(tmp_path, "llm_model_id")
    decoder = found.load(CPU, torch.float32)
    assert isinstance(decoder, TransformersDecoder)
    assert found.max_positions == decoder.max_positions == 512
    assert found.cache_layout(CPU, torch.float32) == decoder.cache_layout()
    expected = reference_logits(model, tokens)
    assert torch.allclose(first_logits(decoder, tokens), expected, atol=1e-4)
    loaded = load(model, "llm_model_id", CPU)
    assert torch.equal(first_logits(loaded, tokens), first_logits(decoder, tokens))


def test_a_native_family_with_another_activation_goes_through_transformers() -> None:
    model, tokens = random_model("llama", hidden_act="gelu"), random_tokens(1, 16)
    decoder = load(model, "slm_model_id", CPU)
    assert isinstance(decoder, TransformersDecoder)
    expected = reference_logits(model, tokens)
    assert torch.allclose(first_logits(decoder, tokens), expected, atol=1e-4)
    assert isinstance(load(random_model("llama"), "slm_model_id", CPU), Decoder)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 2.0,
    "short_factor": [1.5] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
CHUNKED = {"layer_types": ["full_attention", "chunked_attention"], "attention_chunk_size": 4}
UNCOVERED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"rope_parameters": LONGROPE}, "rope type 'longrope'"),
    ("llama", {"rope_parameters": PARTIAL}, "partial rotary embedding"),
    ("phi3", {"rope_parameters": PARTIAL}, "partial rotary embedding"),
    ("llama", CHUNKED, "chunked_attention in layer_types"),
]


@pytest.mark.parametrize(("kind", "options", "reason"), UNCOVERED)
def test_what_the_native_forward_lacks_goes_through_transformers(
    kind: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model, tokens = random_model(kind, **options), random_tokens(1, 16)
    expected = reference_logits(model, tokens)
    model.save_pretrained(tmp_path)
    for source in (tmp_path, model):
        found = look(source, "slm_model_id")
        assert found.reason is not None and reason in found.reason
        decoder = found.load(CPU, torch.float32)
        assert isinstance(decoder, TransformersDecoder)
        assert torch.allclose(first_logits(decoder, tokens), expected, atol=1e-4)
    assert look(random_model(kind), "slm_model_id").reason is None


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_native_family_that_sees_the_future_is_refused(kind: str) -> None:
    model = random_model(kind)
    model.config.is_causal = False
    with pytest.raises(ValueError, match=r"slm_model_id: .*neither causal nor a sliding window"):
        look(model, "slm_model_id")


def test_a_checkpoint_of_another_family_must_be_whole(tmp_path: Path) -> None:
    foreign_model("gpt2").save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if "h.1.mlp" not in k})
    with pytest.raises(ValueError, match=r"llm_model_id: .*they lack .*h\.1\.mlp"):
        load(tmp_path, "llm_model_id", CPU)


def test_models_that_cannot_roll_back_are_refused_by_name() -> None:
    with torch.device("meta"):
        mamba = MambaForCausalLM(MambaConfig(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"slm_model_id: .*\(mamba\) has recurrent .*roll back"):
        look(mamba, "slm_model_id")
    with pytest.raises(ValueError, match=r"\(qwen3_next\) has recurrent or linear-attention"):
        check_can_run(Qwen3NextConfig(num_hidden_layers=4))


@pytest.mark.parametrize("kind", ["bloom", "mpt", "falcon"])
def test_models_with_a_bias_of_the_distance_are_refused_by_name(kind: str) -> None:
    config = AutoConfig.for_model(kind, **({"alibi": True} if kind == "falcon" else {}))
    with pytest.raises(ValueError, match=rf"{kind} adds a bias of the distance"):
        check_can_run(config)


# --- refusals ---


@pytest.mark.parametrize("argument", ["slm_model_id", "llm_model_id"])
@pytest.mark.parametrize(
    "missing", ["/no/such/folder", "./nowhere", "a/b/c", "two words", "", "a" * 5000, "\0"]
)
def test_a_missing_folder_names_the_argument(argument: str, missing: str) -> None:
    for read in (look, load_tokenizer):
        with pytest.raises(ValueError, match=f"{argument}: cannot load .*there is no such folder"):
            read(missing, argument)
    for read_weights in (load, load_model):
        with pytest.raises(ValueError, match=f"{argument}: cannot load .*there is no such folder"):
            read_weights(missing, argument, CPU)


def test_a_hub_id_out_of_reach_names_the_argument() -> None:
    with pytest.raises(ValueError, match="slm_model_id: cannot load 'no-one/nothing'"):
        load("no-one/nothing", "slm_model_id", CPU)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"llm_model_id: .* has no config.json"):
        load(tmp_path, "llm_model_id", CPU)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"llm_model_id: .*only safetensors .* only pickled ones"):
        load(folder, "llm_model_id", CPU)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"only safetensors .* has none"):
        load(folder, "llm_model_id", CPU)


def test_a_broken_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="slm_model_id: cannot load"):
        load(folder, "slm_model_id", CPU)


def test_an_unsupported_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    MambaConfig(architectures=["MambaForCausalLM"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"llm_model_id: .*MambaConfig.*cannot roll back"):
        load(tmp_path, "llm_model_id", CPU)


def test_code_in_a_checkpoint_does_not_run(folder: Path) -> None:
    (folder / "config.json").write_text(
        '{"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config"}}'
    )
    (folder / "evil.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder, "llm_model_id", CPU)


def test_a_model_without_weights_or_head_is_refused() -> None:
    with torch.device("meta"):
        empty = random_model("llama")
    with pytest.raises(ValueError, match=r"slm_model_id: .*not loaded: model\.\S+ is on meta"):
        load(empty, "slm_model_id", CPU)
    for body in (LlamaModel(random_model("llama").config), GPT2Model(foreign_model("gpt2").config)):
        reason = rf"llm_model_id: .*{type(body).__name__} is no causal language"
        with pytest.raises(ValueError, match=reason):
            load(body, "llm_model_id", CPU)


def test_positions_without_sense_are_refused(folder: Path) -> None:
    odd = {"rope_type": "linear", "rope_theta": 0.0, "factor": 2.0}
    edit_json(folder, rope_parameters=odd)
    model = random_model("llama")
    model.config.rope_parameters = odd
    for source in (folder, model):
        with pytest.raises(ValueError, match=r"slm_model_id: .*rotary positions are not finite"):
            look(source, "slm_model_id")
