"""Which files of a checkpoint are read, and what is refused before a model is built of them."""

import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, edit_weights, save_random, shard
from safetensors.torch import load_file, save_file
from tiny_models import at, random_model, random_tokens, reference_logits
from torch import Tensor

from hybridgen.engine.cache import Arena
from hybridgen.engine.checkpoint import INDEX
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loading import load, load_model, look

READERS = (load, load_model)


class Alarm:
    """A pickle that shows that it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def logits(model: Decoder, tokens: Tensor) -> Tensor:
    model.bind(Arena([model.cache_layout()], 1, 256, "cpu").caches[0])
    return model(tokens, at(0))


def as_saved(folder: Path, kind: str = "qwen3") -> None:
    """The folder must load as the random model that was saved there."""
    tokens = random_tokens(1, 6)
    decoder = load(folder, "llm_model_id", "cpu", torch.float32)
    expected = reference_logits(random_model(kind), tokens)
    assert torch.allclose(logits(decoder, tokens), expected, atol=1e-4)


def refused(folder: Path | str, message: str) -> None:
    for read in READERS:
        with pytest.raises(ValueError, match=rf"(?s)^llm_model_id: cannot load .*{message}"):
            read(folder, "llm_model_id", "cpu")


# --- Only safetensors, only of the folder. ---


def test_shards_are_read(tmp_path: Path) -> None:
    shard(save_random(tmp_path), parts=3)
    as_saved(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    files = shard(save_random(tmp_path), parts=3)
    files[1].unlink()
    refused(tmp_path, rf"{INDEX} names files that are not there: model-00002-of-00003")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = save_random(tmp_path / "inside")
    files = shard(folder)
    if name.endswith(".bin"):
        torch.save(load_file(files[0]), folder / name)
    else:
        files[0].rename(folder / name)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    moved = {k: name if v == files[0].name else v for k, v in index.items()}
    edit_json(folder, INDEX, weight_map=moved)
    refused(folder, "may only name safetensors files in the folder itself, not")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/model.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "below/model.safetensors",
        "model.safetensors\0.bin",
        "model.safetensors.bin",
        ".safetensors/../x.safetensors",
        "",
        5,
        None,
        ["model.safetensors"],
    ],
)
def test_an_index_may_name_files_of_the_folder_only(tmp_path: Path, name: object) -> None:
    shard(save_random(tmp_path))
    edit_json(tmp_path, INDEX, weight_map={"lm_head.weight": name})
    refused(tmp_path, "weight_map may only name safetensors files in the folder itself, not")


@pytest.mark.parametrize("places", [..., None, {}, [], "model.safetensors", 5])
def test_an_index_without_a_map(tmp_path: Path, places: object) -> None:
    shard(save_random(tmp_path))
    edit_json(tmp_path, INDEX, weight_map=places)
    refused(tmp_path, f"{INDEX}: weight_map must say which file each tensor is in")


def test_nothing_else_in_the_folder_is_read(tmp_path: Path) -> None:
    """Pickles of every kind that transformers knows, and a config that points to them."""
    folder, alarm = save_random(tmp_path / "model"), tmp_path / "read"
    for name in ("pytorch_model.bin", ".metadata", "adapter_model.bin", "__0_0.distcp"):
        (folder / name).write_bytes(pickle.dumps(Alarm(alarm)))
    edit_json(folder, transformers_weights="pytorch_model.bin", extra_files=["evil.bin"])
    edit_json(
        folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="no-one/nothing"
    )
    as_saved(folder)
    assert not alarm.exists()
    with pytest.raises(FileExistsError):  # the alarm works
        alarm.mkdir()
        pickle.loads((folder / "pytorch_model.bin").read_bytes())


def test_a_config_cannot_choose_another_file(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "model")
    zeros = {k: torch.zeros_like(v) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(zeros, tmp_path / "other.safetensors", {"format": "pt"})
    save_file(zeros, folder / "other.safetensors", {"format": "pt"})
    for name in ("other.safetensors", "../other.safetensors", "pytorch_model.bin"):
        edit_json(folder, transformers_weights=name)
        as_saved(folder)


def test_a_hub_id_is_read_from_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rules hold there: the cache of the hub stands in for the hub."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    reference = snapshot.parent.parent / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    save_random(snapshot)
    as_saved("someone/tiny")
    files = shard(snapshot)
    as_saved("someone/tiny")
    files[0].unlink()
    refused("someone/tiny", f"names files that are not there: {files[0].name}")
    edit_json(snapshot, INDEX, weight_map={"lm_head.weight": "../../evil.safetensors"})
    refused("someone/tiny", "may only name safetensors files in the folder itself")
    for path in snapshot.glob("model*"):
        path.unlink()
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    refused("someone/tiny", "only pickled ones")


# --- How transformers would run it is not the checkpoint's to say. ---


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn", "no-such", 5]
)
def test_attention_named_in_a_config_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, name: object
) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)  # what would fetch code from a hub
    edit_json(save_random(tmp_path), **{field: name})
    as_saved(tmp_path)
    model = load_model(tmp_path, "checkpoint", "cpu", torch.float32)
    assert model.config._attn_implementation == "sdpa"  # transformers' own choice
    model.generate(random_tokens(1, 4), max_new_tokens=2, pad_token_id=0)


# --- Quantised weights. ---

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "of next year"}, "of next year"),
        ({"quant_method": 5}, "5"),
        ({}, r"\{\}"),
        ([], r"\[\]"),
        ("fp8", "'fp8'"),
    ],
)
def test_quantised_checkpoints_are_refused_by_their_method(
    tmp_path: Path, settings: object, method: str
) -> None:
    edit_json(save_random(tmp_path), quantization_config=settings)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    refused(tmp_path, rf"quantised \({method}.*load the checkpoint that was quantised")


def test_a_loaded_model_that_is_quantised_is_refused() -> None:
    model = random_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match=r"slm_model_id: .*quantised \(gptq\)"):
        load(model, "slm_model_id", "cpu")


def test_no_quantisation_is_no_quantisation(tmp_path: Path) -> None:
    edit_json(save_random(tmp_path), quantization_config=None)
    as_saved(tmp_path)


def test_fp8_is_multiplied_by_its_scales(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    expected: dict[str, Tensor] = {}

    def quantise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        stored: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if "_proj" not in name:
                expected[name] = stored[name] = tensor.bfloat16()
                continue
            scales = torch.empty([-(-size // 128) for size in tensor.shape]).uniform_(0.001, 0.004)
            each = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
            each = each[: tensor.shape[0], : tensor.shape[1]]
            stored[name] = (tensor / each).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
            expected[name] = stored[name].float() * each
        return stored

    edit_weights(save_random(tmp_path, **sizes), quantise)
    edit_json(tmp_path, quantization_config=FP8)
    decoder = load(tmp_path, "llm_model_id", "cpu", torch.float32)
    model = random_model("qwen3", **sizes)
    model.load_state_dict({k: v.float() for k, v in expected.items()})
    tokens = random_tokens(1, 6)
    assert torch.allclose(logits(decoder, tokens), reference_logits(model, tokens), atol=2e-2)


# --- Values that no model has. ---


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "value", [1.5, True, "x", 2**70, -(2**70), {}, [1.5], [0, True], ["x"], [[1]], [2**70], [None]]
)
def test_eos_ids_that_are_none_are_refused(tmp_path: Path, file: str, value: object) -> None:
    edit_json(save_random(tmp_path), file, eos_token_id=value)
    refused(tmp_path, f"{file}: eos_token_id must be an integer")


@pytest.mark.parametrize("part", ["config", "generation_config"])
@pytest.mark.parametrize("value", [1.5, True, "x", 2**70, [0, "x"]])
def test_eos_ids_of_loaded_models(part: str, value: object) -> None:
    model = random_model("llama")
    object.__setattr__(getattr(model, part), "eos_token_id", value)
    with pytest.raises(ValueError, match=f"slm_model_id: .*{part}: eos_token_id must be"):
        load(model, "slm_model_id", "cpu")


@pytest.mark.parametrize("value", [None, 5, 0, -1, [], [1, 2], 2**40])
def test_eos_ids_that_pass(tmp_path: Path, value: object) -> None:
    edit_json(save_random(tmp_path), "generation_config.json", eos_token_id=value)
    decoder = load(tmp_path, "llm_model_id", "cpu")
    assert decoder.generation_config is not None
    assert decoder.generation_config.eos_token_id == value


def test_old_checkpoints_recommend_in_config_json(tmp_path: Path) -> None:
    save_random(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    edit_json(tmp_path, temperature=0.5, eos_token_id=[7, 8])
    recommended = load(tmp_path, "llm_model_id", "cpu").generation_config
    assert recommended is not None
    assert (recommended.temperature, recommended.eos_token_id) == (0.5, [7, 8])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", 2**70, [4], 10**9])
@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "hidden_size", "vocab_size", "num_key_value_heads"]
)
def test_sizes_that_the_weights_do_not_back_are_refused_at_once(
    tmp_path: Path, field: str, value: object
) -> None:
    edit_json(save_random(tmp_path), **{field: value})
    began = time.perf_counter()
    refused(tmp_path, "(config.json|cannot share)")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**9},
        {"n_layers": 2**70},
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}},
        {"model_type": "gpt_neo", "num_layers": 10**9},
    ],
)
def test_no_list_is_made_as_long_as_a_config_says(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    edit_json(save_random(tmp_path), **changes)
    refused(tmp_path, r"config.json: \w+ must be an integer from [01] to 10000")


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    edit_json(save_random(tmp_path, "llama"), num_hidden_layers=9_999)
    began = time.perf_counter()
    refused(tmp_path, "num_hidden_layers is 9999, but there are 21 tensors")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", '{"a":' * 10**5, "\0", "\xff"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", INDEX])
def test_files_that_are_not_json(tmp_path: Path, file: str, content: str) -> None:
    shard(save_random(tmp_path))
    (tmp_path / file).write_text(content, encoding="latin-1")
    refused(tmp_path, f"{file} (is not valid JSON|must hold an object)")


def test_a_model_is_refused_before_the_first_weight_is_read(tmp_path: Path) -> None:
    save_random(tmp_path)
    look(tmp_path, "slm_model_id")
    edit_weights(tmp_path, lambda tensors: dict(list(tensors.items())[:5]))
    with pytest.raises(ValueError, match="slm_model_id: cannot load"):
        look(tmp_path, "slm_model_id")
