"""Where progress can be seen: on a terminal and in a notebook, and nowhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers.utils import logging


def shows_progress() -> bool:
    """Whether a bar of `tqdm.auto` would be drawn, not written out as lines of a log."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def bars_of_transformers() -> Iterator[None]:
    """Bars of transformers, such as of weights that are loaded, where they can be seen alone."""
    if shows_progress() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
