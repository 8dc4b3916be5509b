"""A target of any cost with a perfect draft: a model, and the same under layers that add nothing.

A dead layer is a copy of a live one whose `o_proj` and `down_proj` are zero. It costs what the
live one costs, and leaves the residual stream as it is to the bit, so the padded model writes the
text of the model that it is made of.
"""

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
SILENCED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
PAPERS = ("generation_config.json", "tokenizer*.json", "chat_template.jinja")


def write(path: Path, source: Path, times: int) -> None:
    """Write to the folder ``path`` the checkpoint ``source``, of ``times`` its layers.

    ``source`` is Llama-shaped, with its weights in one model.safetensors.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    layers = config["num_hidden_layers"]
    config["num_hidden_layers"] = times * layers
    if config.get("layer_types"):
        config["layer_types"] *= times
    weights = load_file(source / "model.safetensors")
    for name, weight in list(weights.items()):
        parts = LAYER.fullmatch(name)
        if parts is None:
            continue
        before, index, after = parts.groups()
        for copy in range(1, times):
            dead = weight * 0 if name.endswith(SILENCED) else weight.clone()
            weights[f"{before}{copy * layers + int(index)}{after}"] = dead
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for pattern in PAPERS:
        for file in source.glob(pattern):
            shutil.copy(file, path)
