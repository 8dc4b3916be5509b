"""The files of a checkpoint, looked at before anything is built from them.

Of a folder, or of the snapshot of a hub id, only these are read: config.json,
generation_config.json, the index of the weights, and safetensors files in the folder itself. What
they say is checked here as far as it can be without a model, so that whatever is wrong is named by
file and field, and no size in a config can cost time or memory that the weights do not back.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from hybridgen.checks import check_int, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Other formats: what their files are called, and what to do instead.
FORMATS = {
    "GGUF": (("*.gguf",), ": name the checkpoint in safetensors that they were made from"),
    "ONNX": (("*.onnx", "onnx/*.onnx"), ": name the checkpoint that they were exported from"),
    "pickled": (
        ("*.bin", "*.pt", "*.pth", "*.ckpt"),
        ", which can run code when read: where you trust them, let transformers convert them, "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another), and AutoTokenizer "
        "likewise",
    ),
}
# As long as these say are some lists that transformers makes of a config, whatever its weights.
LENGTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_labels")
LONGEST_LIST = 10_000
LONGEST = 2**63 - 1
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
OPTIONAL = ("num_key_value_heads", "head_dim")  # null there means: as the other sizes imply
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one tensor; dtype as it spells it, such as "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


Fetch = Callable[[str], Path | None]


def find(model: str | PathLike[str]) -> Fetch:
    """How to get a file of ``model`` by its name; it gives None for a file that is not there.

    Raises ValueError for what is neither a folder nor a hub id, and for a folder of another format;
    a hub id is not asked for yet.
    """
    folder = Path(model)
    if os.path.isdir(model):  # unlike Path's, it answers for names that no file can have
        if not (folder / "config.json").is_file() and _format(folder):
            raise ValueError(_not_safetensors(_format(folder)))
        return lambda name: path if (path := folder / name).is_file() else None
    if os.path.isfile(model):
        if folder.suffix == ".gguf":
            raise ValueError(_not_safetensors("GGUF"))
        raise ValueError("it is a file: name its folder, with config.json and the tokenizer in it")
    hub_id = isinstance(model, str) and re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", model)
    if not hub_id or str(model).startswith("."):
        raise ValueError("there is no such folder")
    return lambda name: _download(str(model), name)


def _download(hub_id: str, name: str) -> Path | None:
    path = cached_file(hub_id, name, _raise_exceptions_for_missing_entries=False)
    if path is None and name == "config.json" and "gguf" in hub_id.lower():
        raise ValueError(_not_safetensors("GGUF"))
    return None if path is None else Path(path)


def read_config(fetch: Fetch) -> dict[str, Any]:
    """config.json, checked. Raises ValueError, or TypeError, that names the file and the field."""
    path = fetch("config.json")
    if path is None:
        raise ValueError("it has no config.json")
    config = _read_json(path)
    if "quantization_config" in config:
        check_quantization(config["quantization_config"])
    _check_lengths(config)
    for name in COUNTS:
        if name in config and not (name in OPTIONAL and config[name] is None):
            check_int(f"config.json: {name}", config[name], 1, LONGEST)
    end_ids(config.get("eos_token_id"), "config.json: eos_token_id")
    return config


def _check_lengths(config: Mapping[str, Any]) -> None:
    """Refuse lengths of lists that would take all memory, at any depth of the config."""
    for name, value in config.items():
        if name in LENGTHS and value is not None:
            least = 0 if name == "num_labels" else 1
            check_int(f"config.json: {name}", value, least, LONGEST_LIST)
        elif isinstance(value, Mapping):
            _check_lengths(value)


def read_generation_config(fetch: Fetch) -> dict[str, Any] | None:
    """generation_config.json, with eos ids that are ids; None when there is none."""
    path = fetch("generation_config.json")
    if path is None:
        return None
    config = _read_json(path)
    end_ids(config.get("eos_token_id"), "generation_config.json: eos_token_id")
    return config


def check_quantization(quantization: Any) -> None:
    """Raise ValueError for weights that are not plain numbers, naming the method.

    fp8 passes: transformers multiplies such weights by their scales as it loads them.
    """
    if quantization is None:
        return
    settings = quantization if isinstance(quantization, Mapping) else {}
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "fp8":
        return
    name = shown(quantization) if method is None else str(method)[:40]
    raise ValueError(
        f"its weights are quantised ({name}), which is not supported: load the checkpoint that "
        "was quantised, with weights in bfloat16, float16 or float32"
    )


def end_ids(value: Any, name: str) -> tuple[int, ...]:
    """The eos ids of a config's field, which holds none, one or a list of them.

    Raises TypeError or ValueError, naming the field, for what is not a 64-bit integer. An id that
    no token has, such as -1, is one that is never written, as it is for transformers.
    """
    if value is None:
        return ()
    ids = value if isinstance(value, (list, tuple)) else [value]
    return tuple(check_int(name, number, -(2**63), LONGEST) for number in ids)


def read_headers(fetch: Fetch) -> dict[str, Header]:
    """Name -> header of every tensor of the weights.

    Raises ValueError for weights that are missing, elsewhere, not safetensors, or empty.
    """
    headers: dict[str, Header] = {}
    for path in _weight_files(fetch):
        try:
            with safe_open(path, "pt") as opened:
                names = opened.keys()  # the file itself is no iterable
                for name in names:
                    piece = opened.get_slice(name)
                    headers[name] = Header(path, piece.get_dtype(), tuple(piece.get_shape()))
        except SafetensorError as error:
            raise ValueError(f"{path.name} is damaged: {error}") from error
    if not any(_numbers(header) for header in headers.values()):
        raise ValueError("its safetensors files hold no weights")
    return headers


def numbers(headers: Mapping[str, Header]) -> int:
    """How many numbers the weights hold."""
    return sum(_numbers(header) for header in headers.values())


def _numbers(header: Header) -> int:
    count = 1
    for size in header.shape:
        count *= size
    return count


def open_slices(headers: Mapping[str, Header], stack: ExitStack) -> dict[str, Any]:
    """Name -> the tensor as safetensors' slice, read when it is asked for; files in ``stack``."""
    files = {header.file for header in headers.values()}
    opened = {path: stack.enter_context(safe_open(path, "pt")) for path in files}
    return {name: opened[header.file].get_slice(name) for name, header in headers.items()}


def _weight_files(fetch: Fetch) -> list[Path]:
    single = fetch(SINGLE)
    if single is not None:
        return [single]
    index = fetch(INDEX)
    if index is None:
        config = fetch("config.json")
        raise ValueError(_not_safetensors(None if config is None else _format(config.parent)))
    paths, missing = [], []
    for name in _shards(index):
        path = fetch(name)
        missing.append(name) if path is None else paths.append(path)
    if missing:
        raise ValueError(f"{INDEX} names files that are not there: {listed(missing)}")
    return paths


def _shards(index: Path) -> list[str]:
    """The files that an index names, each once."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{INDEX}: weight_map must say which file each tensor is in")
    names = list(places.values())
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", name):
            raise ValueError(
                f"{INDEX}: weight_map may only name safetensors files in the folder itself, "
                f"not {shown(name)}"
            )
    return sorted(set(names))


def _format(folder: Path) -> str | None:
    """The one of `FORMATS` that the files of a folder without safetensors weights are in."""
    for name, (patterns, _) in FORMATS.items():
        if any(any(folder.glob(pattern)) for pattern in patterns):
            return name
    return None


def _not_safetensors(name: str | None) -> str:
    found = "none" if name is None else f"only {name} ones{FORMATS[name][1]}"
    return f"only safetensors weights are loaded, and it has {found}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold an object, not {shown(content)}")
    return content


def listed(names: list[str], most: int = 4) -> str:
    """Names for a message, the first few and how many more."""
    first = ", ".join(name[:100] for name in sorted(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
