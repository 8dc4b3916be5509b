"""The pairs of models that are measured, by name; what can be made without a hub is made here."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridgen.benchmarks import padded, shaped
from hybridgen.benchmarks.contender import Pair
from hybridgen.pair import LLM_PATH, SLM_PATH

AGREEMENT = 0.8
TIMES = 4
FORM = 1  # of what is built: to be raised where the same name gets other weights
FACTS = "hybridgen.json"

SHAPED = {
    "qwen3-0.6b+4b": ("qwen3-0.6b", "qwen3-4b"),
    "qwen3-0.6b+8b": ("qwen3-0.6b", "qwen3-8b"),
    "qwen3-1.7b+8b": ("qwen3-1.7b", "qwen3-8b"),
    "llama-1b+8b": ("llama-1b", "llama-8b"),
    "tiny": ("tiny-slm", "tiny-llm"),
}
NAMES = {
    "embedded": "the pair that ships with the package",
    "smollm2": "SmolLM2-135M-Instruct with its first layers as SLM; see tests/real/smollm2.py",
    "smollm2-padded@4": "SmolLM2-135M and itself under dead layers, at 4 times its cost",
    "qwen3-0.6b+4b@0.8": "shapes of Qwen3-0.6B and 4B, which agree on 0.8 of the tokens",
    "qwen3-0.6b+8b@0.8": "shapes of Qwen3-0.6B and 8B",
    "qwen3-1.7b+8b@0.8": "shapes of Qwen3-1.7B and 8B",
    "llama-1b+8b@0.8": "shapes of Llama-3.2-1B and Llama-3.1-8B",
    "tiny@0.8": "two small models, built in a second, for trying a suite",
}


def find(
    name: str,
    folder: Path,
    *,
    slm: str | None = None,
    llm: str | None = None,
    device: str = "cpu",
) -> Pair:
    """The pair of a name, built into ``folder`` where it is one that is built and is not there.

    name      one of `NAMES`, with any number after the "@", or none; of models that are given, any
    slm, llm  hub ids or folders of the user's own models; the LLM may be alone
    device    where weights are made; they are written to ``folder``

    A checkpoint appears in ``folder`` whole or not at all. ValueError for an unknown name, an
    impossible number, SmolLM2 where it is missing, and a folder that holds something else.
    """
    if llm is not None:
        return Pair(name, slm, llm, "spec-bench", {"slm": slm, "llm": llm})
    if slm is not None:
        raise ValueError("an SLM of your own needs an LLM of your own")
    kind, at, number = name.partition("@")
    if kind in SHAPED:
        return _shaped(kind, _number(name, number, float) if at else AGREEMENT, folder, device)
    if kind == "smollm2-padded":
        return _padded(_number(name, number, int) if at else TIMES, folder)
    if name == "smollm2":
        home = _smollm2(folder)
        return Pair(name, str(home / "slm"), str(home / "llm"), "spec-bench")
    if name == "embedded":
        return Pair(name, str(SLM_PATH), str(LLM_PATH), "code")
    raise ValueError(f"there is no pair {name!r}: there are {', '.join(NAMES)}")


def _number(name: str, number: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(number)
    except ValueError:
        raise ValueError(f"{name}: {number!r} is no number that fits there") from None


def _shaped(kind: str, agreement: float, folder: Path, device: str) -> Pair:
    small, large = SHAPED[kind]
    paths = []
    for shape, share in ((small, agreement), (large, 1.0)):
        # One LLM serves all agreements, and one SLM all LLMs of its vocabulary.
        built = shape if shape == large else f"{shape}@{share:g}"
        facts = {"form": FORM, "shape": shape, "agreement": share}

        def write(path: Path, shape: str = shape, share: float = share) -> None:
            shaped.write(path, shape, share, device)

        paths.append(str(_once(folder / built, facts, write)))
    return Pair(f"{kind}@{agreement:g}", paths[0], paths[1], "random", {"agreement": agreement})


def _smollm2(folder: Path) -> Path:
    """The folder that holds its `slm` and `llm`."""
    home = Path(os.environ.get("HYBRIDGEN_SMOLLM2") or folder / "smollm2")
    if not all((home / name / "config.json").is_file() for name in ("slm", "llm")):
        raise ValueError(
            f"SmolLM2 is not in {home}: `python tests/real/smollm2.py {home}` in a checkout makes "
            "it, and HYBRIDGEN_SMOLLM2 may name another folder"
        )
    return home


def _padded(times: int, folder: Path) -> Pair:
    if times < 1:
        raise ValueError(f"smollm2-padded: the LLM costs 1, 2, ... times the SLM, not {times}")
    source = _smollm2(folder) / "llm"
    facts = {"form": FORM, "shape": "smollm2-padded", "times": times}
    llm = _once(
        folder / f"smollm2-padded@{times}", facts, lambda path: padded.write(path, source, times)
    )
    name = f"smollm2-padded@{times}"
    return Pair(name, str(source), str(llm), "spec-bench", {"agreement": 1.0, "times": times})


def _once(path: Path, facts: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """``path``, written where it is not there; ValueError where it holds anything else."""
    if path.exists():
        _check(path, facts)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        write(scratch)
        (scratch / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        scratch.chmod(0o755)  # a temporary folder is its maker's alone
        try:
            scratch.rename(path)
        except OSError:  # another process was quicker
            _check(path, facts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _check(path: Path, facts: dict[str, Any]) -> None:
    try:
        found = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != facts:
        raise ValueError(f"{path} is not the checkpoint of that name: remove it, and it is built")
