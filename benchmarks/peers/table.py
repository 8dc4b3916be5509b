"""The peers by name; each is imported when it is asked for."""

from importlib import import_module
from typing import cast

from hybridgen.benchmarks.peers.base import Peer

PEERS = {
    "transformers": "transformers_generate",
    "llama.cpp": "llama_cpp",
    "openvino": "openvino_genai_pipeline",
    "ctranslate2": "ctranslate2_generator",
    "vllm": "vllm_llm",
    "sglang": "sglang_engine",
}
ON_TORCH = ("transformers",)  # it shares our threads; the others have their own


def peer(name: str) -> Peer:
    """The peer's module."""
    return cast(Peer, import_module(f"{__package__}.{PEERS[name]}"))
