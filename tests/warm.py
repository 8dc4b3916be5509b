"""Python programs without the seconds that it takes to import torch and transformers.

`Warm` is a process that has imported them, and forks for each program: what runs has streams, a
directory, arguments and an exit status of its own, and ends as an interpreter ends. A program whose
start is under test (what it imports, streams that are closed) has to be started for real.
"""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


class Warm:
    """``run(arguments)`` is `subprocess.run([sys.executable, *arguments])`, its output as text."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
        """``arguments`` begin with a program's path, or with -m and a module."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            given = {"arguments": arguments, "cwd": str(cwd), "out": str(out), "err": str(err)}
            print(json.dumps(given), file=self.process.stdin, flush=True)
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(
                arguments, status, out.read_text("utf-8"), err.read_text("utf-8")
            )

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def asked() -> dict[str, Any]:
    """In a child: the program to run. The parent forks, waits and tells, until its input ends."""
    answers = os.dup(1)
    for line in lines(0):
        child = os.fork()
        if child == 0:
            os.close(answers)
            given: dict[str, Any] = json.loads(line)
            return given
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, f"{status}\n".encode())
    sys.exit()


def lines(file: int) -> Iterator[bytes]:
    """Lines of a stream, of which none is read ahead: a child must not have its parent's."""
    line = b""
    while byte := os.read(file, 1):
        line += byte
        if byte == b"\n":
            yield line
            line = b""


def become(arguments: list[str], cwd: str, out: str, err: str) -> None:
    """Run a program as if this process had been started with it."""
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    if arguments[0] == "-m":
        sys.path[0], sys.argv = cwd, arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(cwd, arguments[0]).parent), arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

    import hybridgen.cli
    import hybridgen.generator  # noqa: F401

    become(**asked())
