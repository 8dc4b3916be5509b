"""GGUF files hold a checkpoint's tensors, by llama.cpp's names and in its order of rotation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hybridgen.benchmarks.peers.gguf_file import ids_of, interleaved, write_gguf

gguf = pytest.importorskip("gguf", reason="the extra `peers` is not installed")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters=LLAMA3,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {each.name: tensor_of(each) for each in reader.tensors}


def tensor_of(told: Any) -> torch.Tensor:
    shape = tuple(int(size) for size in reversed(told.shape))
    raw = torch.from_numpy(np.array(told.data).view(np.uint8).reshape(-1))
    dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[told.tensor_type.name]
    return raw.view(dtype).reshape(shape)


def test_a_qwen3s_tensors_are_the_checkpoints(tiny_pair: Any, tmp_path: Path) -> None:
    write_gguf(tiny_pair.llm, tmp_path / "m.gguf", "float32")
    values, tensors = read(tmp_path / "m.gguf")
    state = AutoModelForCausalLM.from_pretrained(tiny_pair.llm).state_dict()
    assert values["general.architecture"] == "qwen3"
    assert values["qwen3.block_count"] == 2
    assert values["qwen3.attention.key_length"] == 16
    assert torch.equal(tensors["token_embd.weight"], state["model.embed_tokens.weight"])
    for ours, theirs in (
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ):
        assert torch.equal(tensors[ours], state[theirs]), ours
    assert len(tensors) == len(state) - 1  # the head is the embedding's
    assert "output.weight" not in tensors


def test_bfloat16_is_kept_and_norms_are_float32(tiny_pair: Any, tmp_path: Path) -> None:
    write_gguf(tiny_pair.llm, tmp_path / "m.gguf", "bfloat16")
    _, tensors = read(tmp_path / "m.gguf")
    state = AutoModelForCausalLM.from_pretrained(tiny_pair.llm).state_dict()
    weight = state["model.layers.0.self_attn.v_proj.weight"].bfloat16()
    assert torch.equal(tensors["blk.0.attn_v.weight"], weight)
    assert tensors["blk.0.attn_norm.weight"].dtype == torch.float32


def test_no_token_of_the_vocabulary_ends_a_text(tiny_pair: Any, tmp_path: Path) -> None:
    write_gguf(tiny_pair.llm, tmp_path / "m.gguf", "float32")
    values, tensors = read(tmp_path / "m.gguf")
    names = values["tokenizer.ggml.tokens"]
    assert len(names) == tensors["token_embd.weight"].shape[0]
    assert not any("special" in name or name.endswith("_token_id") for name in values)
    assert ids_of("".join(names)) == list(range(len(names)))


def test_a_llama_is_rotated_as_llama_cpp_does(llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "m.gguf", "float32")
    _, tensors = read(tmp_path / "m.gguf")
    weight = LlamaForCausalLM.from_pretrained(llama).model.layers[0].self_attn.q_proj.weight
    head = weight.detach()[8:16]  # the second of four
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(tensors["blk.0.attn_q.weight"][8:16], head[order])
    assert torch.equal(interleaved(weight.detach(), 4), tensors["blk.0.attn_q.weight"])


def test_llama_3s_frequencies_are_divided_by_the_factors(llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "m.gguf", "float32")
    values, tensors = read(tmp_path / "m.gguf")
    model = LlamaForCausalLM.from_pretrained(llama)
    plain = 5e5 ** -(torch.arange(0, 8, 2) / 8)
    scaled = plain / tensors["rope_freqs.weight"]
    torch.testing.assert_close(scaled, model.model.rotary_emb.inv_freq)
    assert values["llama.rope.freq_base"] == 5e5
    assert tensors["output.weight"].shape == (50, 32)
