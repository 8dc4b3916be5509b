"""Read models and tokenizers from a folder or the hub: the one place that does.

Only safetensors checkpoints are read, and no code from a checkpoint runs unless the caller says
``trust_remote_code=True``.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.families import check

SMALL_MODEL = 2_000_000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load(
    model: str | os.PathLike[str] | PreTrainedModel,
    argument: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    batch_invariant: bool = True,
) -> Decoder:
    """A native decoder from a local folder, a hub id or a loaded model.

    argument  the name of the caller's argument, for messages ("slm_model_id")
    dtype     None: see `default_dtype`; a loaded model keeps its own

    A loaded model is moved to ``device`` (and ``dtype``) in place and shares its weights with the
    decoder. Raises ValueError for what cannot be found, read or run.
    """
    if isinstance(model, PreTrainedModel):
        check(model.config)
        return Decoder.from_model(_place(model, torch.device(device), dtype), batch_invariant)
    config = load_config(model, argument, trust_remote_code)
    check(config)
    decoder = Decoder.from_model(
        load_model(model, argument, device, dtype, trust_remote_code, config), batch_invariant
    )
    decoder.pack()
    return decoder


def load_model(
    model: str | os.PathLike[str],
    argument: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """The transformers model in evaluation mode on ``device``, whatever its kind.

    config  the model's, where it has been read. Raises ValueError as `load` does.
    """
    if config is None:
        config = load_config(model, argument, trust_remote_code)
    device = torch.device(device)
    if dtype is None:
        dtype = default_dtype(config, device, trust_remote_code)
    loaded = _pretrained(
        AutoModelForCausalLM,
        model,
        argument,
        trust_remote_code,
        use_safetensors=True,
        dtype=dtype,
    )
    assert isinstance(loaded, PreTrainedModel)
    return _place(loaded, device, None)


def load_config(
    model: str | os.PathLike[str], argument: str, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The model's config. ValueError, naming ``argument``, when there is none to read."""
    _check_folder(model, argument)
    config = _pretrained(AutoConfig, model, argument, trust_remote_code)
    assert isinstance(config, PretrainedConfig)
    return config


def load_tokenizer(
    model: str | os.PathLike[str], argument: str, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer. ValueError, naming ``argument``, when there is none to read."""
    _check_folder(model, argument, weights=False)
    tokenizer = _pretrained(AutoTokenizer, model, argument, trust_remote_code)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made of nothing, where no file is
        raise ValueError(f"{argument}: {str(model)!r} has no tokenizer with a vocabulary")
    return tokenizer


def default_dtype(
    config: PretrainedConfig, device: torch.device, trust_remote_code: bool = False
) -> torch.dtype:
    """bfloat16 on CUDA and on CPUs that multiply it natively; float32 elsewhere.

    Below `SMALL_MODEL` parameters float32 is faster on CPU too: products are then so short that
    the conversions around them cost more than the bytes they save.
    """
    if device.type == "cuda":
        return torch.bfloat16
    if device.type != "cpu" or not cpu_has_bfloat16():
        return torch.float32
    large = parameter_count(config, trust_remote_code) > SMALL_MODEL
    return torch.bfloat16 if large else torch.float32


def parameter_count(config: PretrainedConfig, trust_remote_code: bool = False) -> int:
    """Parameters of a model of this config, without allocating one."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512_BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    try:
        return any(bool(getattr(torch.cpu, name)()) for name in probes)
    except (AttributeError, RuntimeError):
        pass
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _place(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None
) -> PreTrainedModel:
    module: Any = model  # `to` is decorated beyond what its annotation says
    current = next(model.parameters())
    if device.index is None and current.device.type == device.type:
        device = current.device
    if current.device != device or dtype not in (None, current.dtype):
        module.to(device=device, dtype=dtype or current.dtype)
    module.eval()
    return model


def _pretrained(
    auto: Any, model: str | os.PathLike[str], argument: str, trust_remote_code: bool, **kwargs: Any
) -> Any:
    """``auto.from_pretrained``; what cannot be read becomes a ValueError naming ``argument``."""
    try:
        return auto.from_pretrained(str(model), trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{argument}: cannot load {str(model)!r}: {error}") from error


def _check_folder(model: str | os.PathLike[str], argument: str, weights: bool = True) -> None:
    """ValueError for a folder that is missing or has no safetensors weights; hub ids pass."""
    folder = Path(model)
    if not folder.is_dir():
        hub_id = isinstance(model, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)
        if not hub_id or str(model).startswith("."):
            raise ValueError(f"{argument}: there is no folder {str(model)!r}")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{argument}: the folder {str(model)!r} has no config.json")
    if weights and not any(folder.glob("*.safetensors")):
        pickled = any(any(folder.glob(pattern)) for pattern in PICKLES)
        why = "only pickled ones, which can run code when read" if pickled else "none"
        raise ValueError(
            f"{argument}: only safetensors weights are loaded, and {str(model)!r} has {why}"
        )
