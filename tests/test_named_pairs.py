"""Named pairs: the table, what is refused, and loading from a hub's cache without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair

from hybridgen import HybridGenerator
from hybridgen.cli import main
from hybridgen.named_pairs import PAIRS, REMARKS, models_of, table

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_table_says_of_each_pair_what_there_is_to_know(capsys: Any) -> None:
    assert main(["pairs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == table().splitlines()
    columns = [lines[0].index(name) for name in ("SLM", "LLM")]
    for line, pair in zip(lines[1:], PAIRS.values(), strict=False):
        assert [line[at:].split()[0] for at in columns] == [pair.slm, pair.llm]
        assert line.split()[3] == f"{2 * (pair.slm_size + pair.llm_size):.1f}"
    assert "qwen3-8b " in table()
    assert max(map(len, lines)) < 120


def test_the_table_is_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"<!-- pairs: begin -->\n```\n{table()}\n```\n" in readme


def test_sizes_are_those_in_the_names_and_remarks_are_explained() -> None:
    for name, pair in PAIRS.items():
        assert name == pair.name
        assert pair.remark in ("", *REMARKS)
        for model, size in ((pair.slm, pair.slm_size), (pair.llm, pair.llm_size)):
            (number, unit), *_ = re.findall(r"-([\d.]+)([BM])\b", model)
            named = float(number) / (1000 if unit == "M" else 1)
            assert size == pytest.approx(named, rel=0.25)
    assert models_of("qwen3-8b", None, None) == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")
    assert models_of(None, "a", "b") == ("a", "b")


def test_a_name_that_is_not_known_and_a_pair_beside_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pair must be one of 'smollm2-1.7b', .*, got 'qwen-8b'"):
        HybridGenerator(pair="qwen-8b")
    with pytest.raises(TypeError, match="pair must be one of"):
        HybridGenerator(pair=8)  # type: ignore[arg-type]
    for models in ({"slm_model_id": "a"}, {"llm_model_id": "b"}):
        with pytest.raises(ValueError, match="leave slm_model_id and llm_model_id out"):
            HybridGenerator(pair="qwen3-8b", **models)  # type: ignore[arg-type]


def cached(hub: Path, model: str, folder: Path) -> None:
    """The checkpoint as a download leaves it: links into a folder of blobs."""
    home = hub / ("models--" + model.replace("/", "--"))
    snapshot, blobs = home / "snapshots" / COMMIT, home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        (blobs / f"{number:040x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)


OFFLINE = """
import json, sys
from hybridgen import HybridGenerator
from hybridgen.cli import main

asked = dict(max_new_tokens=8, seed=3, print_stats=False)
made = HybridGenerator(pair="smollm2-1.7b", device="cpu").generate("def area", **asked)
try:
    HybridGenerator(pair="llama-3.1-8b")
except ValueError as error:
    print(json.dumps([made.tokens, made.text, str(error)]), flush=True)
options = ["--max-new-tokens", "8", "--seed", "3", "--device", "cpu"]
assert main(["def area", "--pair", "smollm2-1.7b", "--stats", "none", *options]) == 0
sys.exit(main(["def area", "--pair", "llama-3.1-8b"]))
"""


def test_a_pair_loads_from_a_cache_without_a_network(tiny_pair: TinyPair, tmp_path: Path) -> None:
    pair = PAIRS["smollm2-1.7b"]
    for model, folder in ((pair.slm, tiny_pair.slm), (pair.llm, tiny_pair.llm)):
        cached(tmp_path / "hub", model, folder)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    first, text = done.stdout.split("\n", 1)
    tokens, made, advice = json.loads(first)
    here = HybridGenerator(str(tiny_pair.slm), str(tiny_pair.llm), device="cpu")
    expected = here.generate("def area", max_new_tokens=8, seed=3, print_stats=False)
    assert (tokens, made) == (expected.tokens, expected.text)
    assert text == expected.text + ("" if expected.text.endswith("\n") else "\n")
    assert advice.startswith("pair='llama-3.1-8b': slm_model_id: cannot load 'meta-llama/")
    for part in (
        "`hf download meta-llama/Llama-3.2-1B-Instruct`",
        "`hf download meta-llama/Llama-3.1-8B-Instruct`",
        REMARKS["gated"],
        "HF_HOME",
        str(tmp_path / "hub"),
    ):
        assert part in advice
        assert part in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("hybridgen: error: --pair=llama-3.1-8b: --slm: cannot load")
    assert said.endswith("give local folders as --slm and --llm")
