"""What the command says and reads: stdin, stdout, stderr, a line while models load, interrupts."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

INTERRUPTED = 128 + signal.SIGINT
ERASE_LINE = "\r\x1b[K"


class Notice:
    """A line on stderr that says what takes so long: on a terminal alone, and erased in the end."""

    text = ""

    def show(self, text: str) -> None:
        """Put ``text`` in the place of what is shown; "" erases it."""
        if sys.stderr.isatty() and (text or self.text):
            with contextlib.suppress(OSError):
                width = os.get_terminal_size(sys.stderr.fileno()).columns
                text = text[: width - 1] if width else text  # a second line would not be erased
            sys.stderr.write(ERASE_LINE + text)
            sys.stderr.flush()
            self.text = text

    @contextlib.contextmanager
    def shown(self, text: str) -> Iterator[None]:
        """Show ``text`` meanwhile."""
        self.show(text)
        try:
            yield
        finally:
            self.show("")


notice = Notice()


def say(line: str) -> None:
    """A line on stderr; a notice that is shown moves below it."""
    shown = notice.text
    notice.show("")
    print(line, file=sys.stderr, flush=True)
    notice.show(shown)


def show_warning(message: Warning | str, *where: Any, **kwargs: Any) -> None:
    """A warning as one line on stderr."""
    say(f"hybridgen: warning: {' '.join(str(message).split())}")


def read_stdin() -> str:
    """All of stdin, as it is: a final newline is part of the prompt."""
    if sys.stdin is None:
        raise ValueError("the prompt is -, but stdin is closed")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on stdin is not UTF-8: {error}") from error


def check_there_is_a_stdout() -> None:
    """ValueError in a process that was started without one."""
    if sys.stdout is None:
        raise ValueError("stdout is closed: there is nowhere to write the text")


def write(piece: str) -> None:
    """Send text to stdout now, replacing what its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(piece.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def leave_when_interrupted() -> None:
    """Let SIGINT end the process at once, quietly, whichever library is running or importing.

    A KeyboardInterrupt would come up anywhere, and some of them catch it or turn it into another
    error. Nothing needs to be cleaned up. A signal that the parent has set to be ignored stays so.
    Once the interpreter ends all is said, and the signal comes too late.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def leave(*signal_and_frame: Any) -> NoReturn:
    """End the process as interrupted ones end."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n")
    os._exit(INTERRUPTED)


def open_stderr() -> None:
    """Give a process that was started without stderr one that leads nowhere.

    Without it, `print` would write to stdout, and the next file opened would get what C code says.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != 2:
        os.dup2(nowhere, 2)
        os.close(nowhere)
    sys.stderr = os.fdopen(2, "w")


def check_stdout() -> None:
    """Abandon stdout where it takes no more, a full disk say."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        abandon_stdout()


def abandon_stdout() -> None:
    """Point stdout at nothing, or Python would complain about it once more as it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
