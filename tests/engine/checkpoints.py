"""Checkpoint folders to damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tiny_models import random_model
from torch import Tensor

Tensors = dict[str, Tensor]


def save_random(folder: Path, kind: str = "qwen3", **options: Any) -> Path:
    """The checkpoint of a random model."""
    random_model(kind, **options).save_pretrained(folder)
    return folder


def edit_json(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Set fields of a file; a field of `...` is removed."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    content.update(changes)
    kept = {field: value for field, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept))


def edit_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write the weights anew."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed = {name: tensor.contiguous() for name, tensor in change(tensors).items()}
    save_file(changed, path, metadata={"format": "pt"})


def shard(folder: Path, parts: int = 2) -> list[Path]:
    """Split the weights over several files with an index."""
    single = folder / "model.safetensors"
    tensors, places = load_file(single), {}
    names = sorted(tensors)
    files = [folder / f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::parts]}, file, {"format": "pt"})
        places.update(dict.fromkeys(names[i::parts], file.name))
    edit_json(folder, "model.safetensors.index.json", metadata={}, weight_map=places)
    single.unlink()
    return files
