"""The API reference is built from docstrings, all of them, and shows their tables as tables."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hybridgen

SCRIPT = Path(__file__).parents[1] / "docs" / "api.py"


@pytest.fixture(scope="module")
def api() -> Any:
    spec = spec_from_file_location("api", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_that_is_exported_has_its_place(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    page = (tmp_path / "hybridgen.html").read_text(encoding="utf-8")
    for name in (*hybridgen.__all__, "HybridGenerator.generate", "ProfileResult.save_html"):
        assert f'id="{name}"' in page
    kernels = (tmp_path / "hybridgen" / "kernels" / "linear.html").read_text(encoding="utf-8")
    assert 'id="norm_linear"' in kernels


def test_what_is_undocumented_is_found(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bare", "A module.")

    def said() -> None:
        """Something."""

    def unsaid() -> None:
        pass

    for function in (said, unsaid):
        function.__module__, function.__qualname__ = module.__name__, function.__name__
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert [*api.undocumented(["bare"])] == ["bare.unsaid"]


def test_aligned_lines_become_a_table(api: Any) -> None:
    text = "a, b    what | they are,\n        and more\n**rest  the others"
    assert api.block(text).splitlines() == [
        "| | |",
        "|-|-|",
        "| `a, b` | what &#124; they are, and more |",
        "| `**rest` | the others |",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Plain words.\nAnd more.",
        "    an indented    formula",
        "- a list\n- of two",
        "a    table\nthat is none: this line is not indented",
    ],
)
def test_other_paragraphs_stay(api: Any, text: str) -> None:
    assert api.block(text) == text
