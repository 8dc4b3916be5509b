"""What a peer is, and what peers share: a program of others that writes with the same pair."""

from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, PretrainedConfig

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work

FAMILIES = ("llama", "qwen3")
ROPES = ("default", "llama3")
NUM_DRAFTS = 4  # a round, where a program is told how many
MOST_POSITIONS = 4096  # of one text, where a program reserves room for what is asked


class Peer(Protocol):
    """A module of this folder.

    NAME   as its contenders' names begin
    """

    NAME: str

    def missing(self, place: Place) -> str | None:
        """Why it cannot run there and what to do about that; None where it can."""

    def contenders(
        self, pair: Pair, place: Place, scratch: Path, most: int = 1
    ) -> Iterator[Contender]:
        """Its ways to write, each loaded when it is asked for.

        Converted checkpoints are kept in ``scratch``, a folder of the pair's own, and used again
        when they are there. No call will have more than ``most`` prompts. Raises `CannotRun` for
        a pair that the program has no form of.
        """


class LLMWriter:
    """What contenders of peers have in common: each writes the LLM's text.

    None promises another's to the token: sums in another order part at near-ties.
    """

    writers: tuple[str, ...] = ("llm",)
    samples: bool = True

    def promises(self, work: Work) -> str | None:
        return None


class CannotRun(ValueError):
    """The program runs here, but not this pair."""


def lacking(module: str, install: str) -> str | None:
    """What to do if a module is not installed."""
    return None if find_spec(module) else f"{module} is not installed: pip install {install}"


def only_on(kind: str, place: Place) -> str | None:
    """Why a program for one kind of device does not run at a place."""
    return None if place.device.startswith(kind) else f"runs on {kind} alone, not {place.device}"


def folder_of(model: str) -> Path:
    """The local folder of a checkpoint; that of a hub id is fetched."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))


def conversions(pair: Pair, scratch: Path) -> Path:
    """A folder for what is made of these very checkpoints; others of the same name have another.

    A checkpoint is told by its id, or by its folder's files with their sizes and times.
    """
    told: list[Any] = []
    for model in (pair.slm, pair.llm):
        files = sorted(Path(model).iterdir()) if model and Path(model).is_dir() else []
        told += [
            model,
            *((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files),
        ]
    return scratch / f"{pair.name}-{sha256(repr(told).encode()).hexdigest()[:12]}"


def config_of(model: str) -> PretrainedConfig:
    """The text model's configuration."""
    config: PretrainedConfig = AutoConfig.from_pretrained(folder_of(model)).get_text_config()
    return config


def check_family(config: PretrainedConfig) -> None:
    """Raise `CannotRun` for a model that we do not convert: no Llama or Qwen3, another rope."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if config.model_type not in FAMILIES or rope not in ROPES:
        raise CannotRun(
            f"converted are {' and '.join(FAMILIES)} with ropes {' and '.join(ROPES)}, "
            f"not {config.model_type} with {rope}"
        )


def dtype_of(pair: Pair, place: Place) -> str:
    """The dtype of weights where none is asked for is the LLM checkpoint's."""
    if place.dtype is not None:
        return place.dtype
    return stored_dtype(config_of(pair.llm))


def stored_dtype(config: PretrainedConfig) -> str:
    """Of a checkpoint's weights; one that does not tell is float32."""
    told = str(config.dtype).removeprefix("torch.")
    return told if told in ("bfloat16", "float16") else "float32"


def positions(pair: Pair) -> int:
    """The longest text that is reserved for."""
    return min(MOST_POSITIONS, int(config_of(pair.llm).max_position_embeddings))


def options(dtype: str | torch.dtype, **others: Any) -> dict[str, Any]:
    """A contender's own, as a result tells them."""
    return {"dtype": str(dtype).removeprefix("torch."), **others}


def filters(work: Work) -> dict[str, Any]:
    """What a sampled call asks for, each of temperature, top_k, top_p and min_p told."""
    told = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **work.sampling}
    return told | {"top_k": int(told["top_k"])}


def check(contender: Contender, work: Work) -> None:
    """Raise ValueError for more prompts than a call takes."""
    if len(work.prompts) > contender.batch:
        raise ValueError(
            f"{contender.name} takes {contender.batch} prompts a call, got {len(work.prompts)}"
        )
