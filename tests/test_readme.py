"""README is true: its code runs as it stands, and its tables match the code."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridgen import HybridGenerator
from hybridgen.parameters import markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell(command: str) -> Any:
    """Run a command as a reader would, with this environment's programs first."""
    programs = Path(sys.executable).parent
    return subprocess.run(
        ["bash", "-c", f'PATH="{programs}:$PATH"; {command}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """All in one session, with the embedded pair. What needs a hub is only checked to be a call
    that the class accepts."""
    session: dict[str, Any] = {}
    for block in blocks("python"):
        if "Qwen/" in block:
            bind = inspect.signature(HybridGenerator).bind
            exec(block, {"HybridGenerator": bind})
        else:
            exec(block, session)
    assert session["stats"]["strategy"] == "line opener"
    assert 0 < session["stats"]["llm_tokens"] < session["stats"]["slm_tokens"]
    assert len(session["batch"].text) == 2
    out = capsys.readouterr().out
    assert "Strategy: line opener" in out
    assert "0 divergences" in out
    assert all(
        line == "=" * 60 for line in out.splitlines() if "=" * 60 in line and line != "=" * 70
    )


def test_the_two_commands_are_there_once_for_readers_and_for_ci() -> None:
    (install_and_generate,) = blocks("bash")[:1]
    (install_and_test,) = blocks("bash")[1:2]
    assert install_and_generate == 'pip install -e . && hybridgen "def quicksort(items):"\n'
    assert re.fullmatch(r'pip install -e "\.\[test\]" && pytest.*\n', install_and_test)


def test_the_main_command_writes_text_and_statistics() -> None:
    done = shell(blocks("bash")[0].split("&&")[1])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    assert "Acceptance rate" in done.stderr


def test_the_pipe_example() -> None:
    (example,) = (block for block in blocks("bash") if "--stats json" in block)
    done = shell(example)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr)["strategy"] == "llm"


def test_the_table_of_parameters_is_complete_and_gives_the_defaults() -> None:
    section = README.split("## Parameters of `generate`")[1].split("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    signature = inspect.signature(HybridGenerator.generate).parameters
    known = {n: p for n, p in signature.items() if n != "self" and p.kind is not p.VAR_KEYWORD}
    assert list(table) == list(known)
    for name, parameter in known.items():
        if name in ("prompt", "threshold"):
            continue
        shown = str(parameter.default).replace("'", '"')
        assert table[name].strip("`").strip('"') == shown


def test_the_table_of_parameters_is_what_the_fields_say() -> None:
    assert markdown() in README


def test_every_built_in_strategy_is_in_the_table() -> None:
    from hybridgen.strategies import built_in_strategies

    section = README.split("## Strategies")[1].split("\n## ")[0]
    assert set(re.findall(r'`"(\w+)"`', section)) == set(built_in_strategies())


def test_links_inside_the_readme_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert {link for link in re.findall(r"\]\(#([\w-]+)\)", README)} <= anchors
