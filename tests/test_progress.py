"""Progress is shown on a terminal and in a notebook, and writes nothing anywhere else."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tqdm.notebook
from transformers.utils import logging

from hybridgen import HybridGenerator
from hybridgen.engine import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bars() -> Iterator[None]:
    """transformers' own are on, as they are unless someone turns them off."""
    was = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not was:
        logging.disable_progress_bar()


def work(folder: Path) -> HybridGenerator:
    """Whatever has a bar: models are loaded, a text is written, then the prompts of a file."""
    generator = HybridGenerator()
    generator.generate("def a(", max_new_tokens=4, print_stats=False)
    (folder / "prompts").write_text(json.dumps("def a("))
    generator.generate_file(folder / "prompts", folder / "results", max_new_tokens=4)
    return generator


def test_nothing_is_written_where_there_is_no_terminal(
    bars: None, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    work(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def test_a_process_without_stderr_works(
    bars: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    work(tmp_path)


def test_a_terminal_shows_what_takes_long(
    bars: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(tmp_path)
    for shown in ("Loading weights", "tok/s", "prompt"):
        assert shown in terminal.getvalue()


def test_a_notebook_shows_progress_though_its_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not progress.shows_progress()
    in_notebook: Any = tqdm.notebook.tqdm_notebook
    monkeypatch.setattr(progress, "tqdm", in_notebook)
    assert progress.shows_progress()
