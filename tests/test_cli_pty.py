"""The command on a terminal, and the chat through pipes: as somebody who types sees it."""

import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TinyPair

pytest.importorskip("termios", reason="there are no pseudo-terminals here")
import fcntl
import pty
import termios

PATIENCE = 120  # seconds without any output, after which a program is taken to hang
ERASE = "\r\x1b[K"
WIDTH = 60
# What a session's first process opens becomes its controlling terminal, from which keys interrupt.
TAKE_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A program on a pseudo-terminal: `until` reads what it shows, `type` sends keys."""

    def __init__(self, arguments: list[str]) -> None:
        self.screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
        # Not by a fork of this process: libraries that it has loaded may not survive one.
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def until(self, text: str, again: str = "") -> str:
        """What has been shown since the last call, up to ``text``; "" is the end.

        again    keys to type once more after a second without output
        """
        silent = 0
        while not text or text not in self.shown:
            ready, _, _ = select.select([self.screen], [], [], 1)
            silent = 0 if ready else silent + 1
            assert silent < PATIENCE, f"no {text!r} after {self.shown!r}"
            if not ready:
                self.type(again)
                continue
            try:
                piece = os.read(self.screen, 4096).decode()
            except OSError:  # Linux's way to say that nobody writes any more
                piece = ""
            if not piece:
                assert not text, f"no {text!r} after {self.shown!r}"
                break
            self.shown += piece
        at = self.shown.index(text) + len(text) if text else len(self.shown)
        shown, self.shown = self.shown[:at], self.shown[at:]
        return shown

    def type(self, keys: str) -> None:
        if keys:
            os.write(self.screen, keys.encode())

    def ended(self) -> int:
        """The exit status of a program that is about to end."""
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture
def terminals() -> Iterator[Any]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal([*arguments]))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def models(pair: TinyPair) -> list[str]:
    return ["--slm", str(pair.slm), "--llm", str(pair.llm), "--device", "cpu", "--seed", "1"]


def test_a_line_says_what_is_loading_and_the_text_comes_piece_by_piece(
    terminals: Any, tiny_pair: TinyPair
) -> None:
    """The first piece is there before the second is written: the program waits to be told."""
    code = """
import sys, hybridgen.cli as cli
write, pieces = cli.write, []
def wait(piece):
    write(piece)
    pieces.append(piece)
    if len(pieces) == 1:
        sys.stdin.readline()
cli.write = wait
sys.exit(cli.main(sys.argv[1:]))
"""
    options = ["p", *models(tiny_pair), "--max-new-tokens", "20"]
    terminal = terminals("-c", code, *options)
    first = terminal.until(ERASE + "loading ")
    assert first == ERASE + "loading ", "nothing before it"
    loading = terminal.until(ERASE).removesuffix(ERASE)
    assert f"loading {tiny_pair.slm} and {tiny_pair.llm} ..."[: WIDTH - 1] == f"loading {loading}"
    terminal.type("\r")
    rest = terminal.until("")
    assert terminal.ended() == 0
    assert "Seed: 1\r\n" in rest
    assert rest.count("=" * 60) == 2
    assert "loading" not in rest
    assert "tok/s" in rest


CHAT = """
import sys, time
import hybridgen.cli_chat as chat
from hybridgen.cli import main

class Interrupts(chat.Interrupts):
    def __init__(self):
        super().__init__()
        keys.append(self)

def patiently(piece):
    write(piece)
    if waits and piece.strip():
        write("<waiting>")
        while not keys[0].asked:
            time.sleep(0.01)

def answer(talk, message, *rest):
    global waits
    waits = message == "wait"
    reply(talk, message, *rest)

keys, waits, write, reply = [], False, chat.write, chat.answer
chat.answer, chat.write, chat.Interrupts, chat.PROMPT = answer, patiently, Interrupts, "you> "
sys.exit(main(["chat", *sys.argv[1:]]))
"""


def test_a_chat(terminals: Any, tiny_pair: TinyPair) -> None:
    options = [*models(tiny_pair), "--max-new-tokens", "12", "--stats", "text"]
    terminal = terminals("-c", CHAT, *options)
    terminal.until("loading ")
    assert "Ctrl-C stops a reply" in terminal.until("you> ")

    def said(message: str) -> list[str]:
        """The reply, and the line of statistics."""
        terminal.type(f"{message}\r")
        terminal.until(f"{message}\r\n")
        reply, stats = re.split(r"(?=12 tokens in )", terminal.until("you> "))
        return [reply, stats]

    first, stats = said("one")
    assert ", 0 of " in stats, "nothing to reuse in the first turn"
    assert "tokens reused, seed 1\r\n" in stats
    _, stats = said("more")
    assert int(re.search(r"(\d+) of \d+ prompt tokens reused", stats)[1]) > 12

    terminal.type("wait\r")
    terminal.until("<waiting>")
    terminal.type("\x03")  # stops the reply
    assert "tok/s" not in terminal.until("you> ")
    terminal.type("half a li\x03")  # breaks the line off
    terminal.until("you> ", again="\x03")  # readline may not see the first before the next key
    said("two")

    terminal.type("/reset\r")
    terminal.until("you> ")
    assert said("one")[0] == first
    terminal.type("x" * 400 + "\r")
    assert "hybridgen: error: the chat has " in terminal.until("you> ")
    terminal.type("\x04")
    assert "Traceback" not in terminal.until("")
    assert terminal.ended() == 0


def test_a_chat_through_pipes(tiny_pair: TinyPair) -> None:
    """Nothing but the replies on stdout; Ctrl-C, at rest, ends it as it ends any program."""
    options = ["--stats", "json", "--max-new-tokens", "5", "--system", "be brief"]
    chat = subprocess.Popen(
        [sys.executable, "-m", "hybridgen", "chat", *models(tiny_pair), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdin is not None and chat.stdout is not None and chat.stderr is not None
    chat.stdin.write("größe\n\nzwei\n".encode())
    chat.stdin.flush()
    first, second = (json.loads(chat.stderr.readline()) for _ in range(2))
    assert (first["total_tokens"], first["seed"]) == (5, 1)
    assert second["prompt_tokens"] > first["prompt_tokens"] + 5
    chat.send_signal(signal.SIGINT)
    out, err = chat.communicate(timeout=PATIENCE)
    assert (chat.returncode, err) == (130, b"\n")
    assert out.decode().endswith("\n")
    assert "> " not in out.decode()
