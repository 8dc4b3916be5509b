"""The command `hybridgen chat`: a conversation on a terminal, or line by line through pipes."""

from __future__ import annotations

import contextlib
import signal
import sys

from hybridgen.cli_options import (
    add_fields,
    add_models,
    add_system,
    check_options,
    declared,
    load,
    template_kwargs,
)
from hybridgen.cli_terminal import check_there_is_a_stdout, leave, say, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from hybridgen.chat import Chat
    from hybridgen.strategies.declarations import Declaration

DESCRIPTION = """\
Talk with a pair of chat models. Each line is a message; what has been said
stays in the cache, so that a reply begins as soon as the new message is read.
Through a pipe, each line of stdin is answered on stdout.
"""

EPILOG = """\
while it runs:
  Ctrl-C       stops the reply; what was written of it counts as said
  /reset       forgets what has been said
  /exit        leaves, as Ctrl-D does

examples:
  hybridgen chat --pair qwen3-8b --chat-template-kwargs enable_thinking=false
  hybridgen chat --pair smollm2-1.7b --system "Answer in one sentence." --stats text
"""

PROMPT = "> "
WELCOME = "Ctrl-C stops a reply, /reset begins anew, /exit or Ctrl-D leaves."


def build_parser(declarations: Sequence[Declaration] | None = None) -> argparse.ArgumentParser:
    """The command's arguments; options not given are None.

    declarations    of the strategies to choose from; None: of the built-in ones
    """
    import argparse
    from dataclasses import replace

    from hybridgen.parameters import NEW_TOKENS, STRATEGY
    from hybridgen.strategies.declarations import BUILT_IN

    parser = argparse.ArgumentParser(
        prog="hybridgen chat",
        usage="hybridgen chat [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_models(parser)
    add_system(parser.add_argument_group("chat"))
    declarations = BUILT_IN if declarations is None else declarations
    longer = replace(NEW_TOKENS, help="most tokens of a reply", unset="1024, or what fits")
    add_fields(parser, declarations, STRATEGY.default, "%(default)s", [longer])
    parser.add_argument_group("output").add_argument(
        "--stats",
        choices=("text", "json", "none"),
        default="none",
        help="after each reply, on stderr: a line, one JSON object, or nothing "
        "(default: %(default)s)",
    )
    return parser


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Load the pair, and answer until the input ends."""
    check_there_is_a_stdout()
    given = check_options(arguments, declared(own))
    kwargs = template_kwargs(arguments.chat_template_kwargs)
    generator = load(arguments, own)
    from hybridgen.chat import Chat

    chat = Chat(generator, arguments.system, kwargs)
    keys = Interrupts()
    if is_terminal():
        say(WELCOME)
        with contextlib.suppress(ImportError):  # Windows has none, and edits lines itself
            import readline  # noqa: F401 (gives `input` a history and keys to edit with)
    while (message := next_message(keys)) is not None:
        if message.strip() == "/exit":
            break
        if message.strip() == "/reset":
            chat.reset()
        elif message.strip():
            answer(chat, message, keys, given, arguments.stats)
            write("\n" if is_terminal() else "")


def is_terminal() -> bool:
    """Whether somebody types, and sees it."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class Interrupts:
    """What Ctrl-C does on a terminal: it breaks off the line that is typed, or asks a reply to end.

    A second one before the reply has ended leaves. A signal that the parent has set to be ignored
    stays so.
    """

    def __init__(self) -> None:
        self.typing = self.asked = False
        if is_terminal() and signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, self._take)

    def _take(self, *signal_and_frame: Any) -> None:
        if self.typing:
            raise KeyboardInterrupt
        if self.asked:
            leave()
        self.asked = True


def next_message(keys: Interrupts) -> str | None:
    """The next line, without its end; None: there are no more."""
    while True:
        keys.typing = True
        try:
            return input(PROMPT) if is_terminal() else read_line()
        except EOFError:
            if is_terminal():
                write("\n")
            return None
        except KeyboardInterrupt:
            write("\n")
        finally:
            keys.typing = False


def read_line() -> str:
    """A line of stdin, which is no terminal."""
    line = b"" if sys.stdin is None else sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"the message on stdin is not UTF-8: {error}") from error


def answer(chat: Chat, message: str, keys: Interrupts, given: dict[str, Any], stats: str) -> None:
    """Write the reply as it comes; where it fails on a terminal, say why, and go on."""
    from hybridgen.text import Stopped

    last, keys.asked = "\n", False

    def show(piece: str) -> None:
        nonlocal last
        if keys.asked:
            raise Stopped
        write(piece)
        last = piece

    try:
        result = chat.reply(message, show, **given)
    except ValueError as error:
        if not is_terminal():
            raise
        say(f"{'' if last.endswith(chr(10)) else chr(10)}hybridgen: error: {error}")
        return
    write("" if last.endswith("\n") else "\n")
    if result is not None and stats == "json":
        import json

        say(json.dumps(result.stats))
    elif result is not None and stats == "text":
        say(in_a_line(result.stats))


def in_a_line(stats: Mapping[str, Any]) -> str:
    """What a reply cost."""
    parts = [f"{stats['total_tokens']} tokens in {stats['elapsed_time']:.2f}s"]
    parts.append(f"{stats['tokens_per_second']:.2f} tok/s")
    if stats.get("draft_generated"):
        parts.append(f"acceptance rate {stats['acceptance_rate']:.2%}")
    if "reused_tokens" in stats:
        parts.append(f"{stats['reused_tokens']} of {stats['prompt_tokens']} prompt tokens reused")
    return ", ".join([*parts, f"seed {stats['seed']}"])
