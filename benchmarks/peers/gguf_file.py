"""A checkpoint of a Llama or a Qwen3 as a GGUF file, for llama.cpp: token ids in, token ids out.

The vocabulary that is written has the size of the model's, and no token in it ends a text: each is
a name of its own, so that llama.cpp finds no end among them, and writes on past the checkpoint's
without its logit being touched. Texts cannot be given to such a file, nor had from it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hybridgen.benchmarks.peers.base import check_family

ARCHITECTURES = {"llama": "LLAMA", "qwen3": "QWEN3"}
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def write_gguf(folder: Path, target: Path, dtype: str) -> None:
    """Write ``target`` from the safetensors in ``folder``; matrices are stored in ``dtype``.

    Raises CannotRun for a model that is neither a Llama nor a Qwen3, or whose rope is scaled in
    another way than Llama 3's; ValueError for weights that GGUF has no name for.
    """
    import gguf

    config = AutoConfig.from_pretrained(folder)
    check_family(config)
    kind = getattr(gguf.MODEL_ARCH, ARCHITECTURES[config.model_type])
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    unfinished = target.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[kind], use_temp_file=True)
    _describe(writer, config, getattr(gguf.LlamaFileType, _file_type(dtype)))
    for name, tensor in _tensors(folder):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            tensor = interleaved(tensor, heads)
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if told is None:
            raise ValueError(f"{folder}: GGUF has no name for {name}")
        _add(writer, told, tensor, dtype)
    if _rope(config)["rope_type"] == "llama3":
        _add(writer, "rope_freqs.weight", _frequency_factors(config), "float32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)


def ids_of(text: str) -> list[int]:
    """The tokens of a text in the vocabulary of such a file: "t10tf" is [16, 15]."""
    return [int(name, 16) for name in text.split("t")[1:]]


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * dim, width], each head's rows reordered as llama.cpp's Llama rotates them.

    It rotates rows 2i and 2i + 1 together, where transformers takes i and i + dim / 2.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape)


def _describe(writer: Any, config: PretrainedConfig, file_type: Any) -> None:
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_file_type(file_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("rwkv")  # of llama.cpp's kinds the one without an end of its own
    writer.add_token_list([f"t{index:x}" for index in range(config.vocab_size)])  # see `ids_of`


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    return dict(config.rope_parameters)


def _frequency_factors(config: PretrainedConfig) -> torch.Tensor:
    """[dim / 2]: what Llama 3 divides each of the plain frequencies by."""
    scaled: torch.Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    dim = 2 * scaled.numel()
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    plain = torch.tensor(_rope(config)["rope_theta"], dtype=torch.float64) ** -exponents
    return (plain / scaled.double()).float()


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors")
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _add(writer: Any, name: str, tensor: torch.Tensor, dtype: str) -> None:
    import gguf

    if tensor.ndim == 1:  # llama.cpp multiplies by norms in float32
        dtype = "float32"
    values = tensor.to(getattr(torch, dtype)).contiguous()
    raw = values.view(torch.uint8).numpy()
    writer.add_tensor(
        name,
        np.ascontiguousarray(raw),
        raw_dtype=getattr(gguf.GGMLQuantizationType, TYPES[dtype]),
    )


def _file_type(dtype: str) -> str:
    return "ALL_F32" if dtype == "float32" else f"MOSTLY_{TYPES[dtype]}"
