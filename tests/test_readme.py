"""README and docs/ are true: their code runs as it stands, their tables match, links lead there."""

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
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
GUIDES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell(command: str) -> Any:
    """Run a command as a reader would, with this environment's programs first."""
    programs = Path(sys.executable).parent
    return subprocess.run(
        ["bash", "-c", f'PATH="{programs}:$PATH"; {command}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def run_blocks(guide: str) -> dict[str, Any]:
    """What a reader has who runs the Python blocks of a guide in one session, from the first on.

    With the embedded pair; what needs a hub is only checked to be a call that the class accepts.
    """
    session: dict[str, Any] = {}
    for block in blocks("python", (ROOT / guide).read_text(encoding="utf-8")):
        if "Qwen/" in block:
            bind = inspect.signature(HybridGenerator).bind
            exec(block, {"HybridGenerator": bind})
        else:
            exec(block, session)
    return session


@pytest.mark.parametrize("guide", GUIDES)
def test_the_python_blocks_run_in_order(guide: str, capsys: pytest.CaptureFixture[str]) -> None:
    session = run_blocks(guide)
    out = capsys.readouterr().out
    assert all(
        line == "=" * 60 for line in out.splitlines() if "=" * 60 in line and line != "=" * 70
    )
    if guide == "README.md":
        assert len(session["batch"].text) == 2
    if guide in ("README.md", "docs/exactness.md"):
        assert "0 divergences" in out
    if guide == "docs/strategies.md":
        assert "Strategy: line opener" in out
        assert session["stats"]["strategy"] == "line opener"
        assert 0 < session["stats"]["llm_tokens"] < session["stats"]["slm_tokens"]


def test_the_two_commands_are_there_once_for_readers_and_for_ci() -> None:
    (install_and_generate,) = blocks("bash")[:1]
    (install_and_test,) = blocks("bash")[1:2]
    assert install_and_generate == 'pip install -e . && hybridgen "def quicksort(items):"\n'
    assert re.fullmatch(r'pip install -e "\.\[test\]" && pytest.*\n', install_and_test)


def test_the_main_command_writes_text_and_statistics() -> None:
    command = blocks("bash")[0].split("&&")[1].strip()
    done = shell(f"{command} --seed 1")  # of another seed each time it may end early
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


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_the_chinese_readme_is_in_step() -> None:
    """It has the code of the English one, block by block, and all strategies."""
    fence = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    assert fence.findall(CHINESE) == fence.findall(README)
    assert set(re.findall(r'`"(\w+)"`', CHINESE)) == set(
        re.findall(r'`"(\w+)"`', README.split("## Strategies")[1].split("\n## ")[0])
    )


@pytest.mark.parametrize(
    "guide", [*GUIDES, "README.zh-CN.md", "CONTRIBUTING.md", "benchmarks/README.md"]
)
def test_links_lead_somewhere(guide: str) -> None:
    here = ROOT / guide
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", here.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        there = here.parent / file if file else here
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_readme_leads_to_every_guide() -> None:
    assert set(GUIDES[1:]) <= set(re.findall(r"\]\(([\w/.]+)\)", README))
