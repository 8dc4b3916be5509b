"""The command as a process: its streams, its exit status, and interrupts at any time."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair
from warm import Warm

from hybridgen.cli import main

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """The command takes SIGINT for itself: give it back to the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def command(tiny_pair: TinyPair, *arguments: str, **options: Any) -> Any:
    """The command in a process of its own, on the tiny pair."""
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    return subprocess.run(
        [sys.executable, "-m", "hybridgen", *models, *arguments], capture_output=True, **options
    )


def within(warm: Warm, tiny_pair: TinyPair, *arguments: str, program: Path | None = None) -> Any:
    """The command, or ``program`` in its place, where its start is of no matter."""
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    first = [str(program)] if program else ["-m", "hybridgen"]
    return warm.run([*first, *models, *arguments], Path.cwd())


def test_the_real_thing(tiny_pair: TinyPair) -> None:
    """stdin to stdout, quiet libraries: stderr is the statistics and nothing else."""
    options = ["-", "--max-new-tokens", "30", "--seed", "3", "--stats", "json"]
    done = command(tiny_pair, *options, input="größe".encode())
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stderr)
    assert (stats["strategy"], stats["seed"]) == ("speculative", 3)
    assert len(done.stdout.decode("utf-8")) > 1


def test_options_out_of_range_are_refused_before_models_are_loaded(capfd: Any) -> None:
    for argument, value in (("--top-p", "3"), ("--max-new-tokens", "0"), ("--stop", "")):
        assert main(["p", "--slm", "/none", "--llm", "/none", argument, value]) == 1
        assert capfd.readouterr().err.startswith(f"hybridgen: error: {argument} must")


def test_a_real_error(tiny_pair: TinyPair) -> None:
    done = command(tiny_pair, "p", "--top-p", "3", text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hybridgen: error: --top-p must be")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_ends_the_command_quietly(tiny_pair: TinyPair) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "hybridgen", *models, "p", "--stats", "none"],
            stdout=gone,
            stderr=subprocess.PIPE,
            env=BUFFERED,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "")


def shell(tiny_pair: TinyPair, redirection: str, *arguments: str) -> Any:
    """The command as a shell starts it, with a redirection."""
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    words = [sys.executable, "-m", "hybridgen", *models, "--max-new-tokens", "5", *arguments]
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(words)} {redirection}"],
        capture_output=True,
        env=BUFFERED,
        text=True,
    )


def test_a_closed_stdout_is_an_error_of_one_line(tiny_pair: TinyPair) -> None:
    done = shell(tiny_pair, ">&-", "p")
    assert done.returncode == 1
    assert done.stderr == (
        "hybridgen: error: stdout is closed: there is nowhere to write the text\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_a_full_disk_is_an_error_of_one_line(tiny_pair: TinyPair) -> None:
    done = shell(tiny_pair, "> /dev/full", "p")
    assert done.returncode == 1
    assert done.stderr.startswith("hybridgen: error: [Errno 28]")
    assert len(done.stderr.splitlines()) == 1


def test_with_stderr_closed_the_statistics_do_not_get_into_the_text(
    warm: Warm, tiny_pair: TinyPair
) -> None:
    done = shell(tiny_pair, "2>&-", "p", "--seed", "1")
    expected = within(warm, tiny_pair, "p", "--seed", "1", "--max-new-tokens", "5")
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    assert expected.stderr.startswith("=====")


def test_a_closed_stdin_is_an_error_only_where_it_is_read(tiny_pair: TinyPair) -> None:
    assert shell(tiny_pair, "<&-", "p").returncode == 0
    done = shell(tiny_pair, "<&-", "-")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hybridgen: error: the prompt is -, but stdin is closed\n"


def test_what_the_llm_recommends_and_is_not_applied_is_said(
    tiny_pair: TinyPair, tmp_path: Path
) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(tiny_pair.llm, folder)
    config = folder / "generation_config.json"
    fields = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps({**fields, "typical_p": 0.9}))
    done = command(TinyPair(tiny_pair.slm, folder), "p", "--stats", "none", text=True)
    assert done.returncode == 0
    assert done.stderr == (
        "hybridgen: warning: the LLM's generation config asks for typical_p=0.9, which "
        "hybridgen does not apply\n"
    )


INTERRUPTED_AT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

import hybridgen.cli
sys.meta_path.insert(0, Interrupt())
sys.exit(hybridgen.cli.main(["p"]))
"""


@pytest.mark.parametrize(
    "module",
    [
        "argparse",
        "torch",
        "numpy",
        "transformers",
        "hybridgen.generator",
        "hybridgen.kernels.verify",
    ],
)
def test_an_interrupt_at_any_import_leaves_no_traceback(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, module], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "\n")


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0, 2.5, 4.0])
def test_an_interrupt_at_any_time_leaves_no_traceback(tiny_pair: TinyPair, delay: float) -> None:
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--device", "cpu"]
    begin = "import hybridgen.cli, sys; print('begun', flush=True); sys.exit(hybridgen.cli.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", begin, "p", *models, "--max-new-tokens", "200", "--stats", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.01 + delay)  # a moment to reach the first line of `main`
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) in ((130, "\n"), (0, ""))  # it may have been done


@pytest.mark.parametrize("late", ["atexit.register(interrupt)", "interrupted = Interrupted()"])
def test_an_interrupt_as_the_interpreter_ends_comes_too_late(late: str) -> None:
    """While exit functions run, and while modules are taken down, where Python handles none."""
    program = f"""
import atexit, os, signal, sys

def interrupt(kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
    kill(pid, number)

class Interrupted:
    def __del__(self, interrupt=interrupt):
        interrupt()

{late}
import hybridgen.cli
sys.exit(hybridgen.cli.main(["--version"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ignored_interrupt_stays_ignored(
    warm: Warm, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import hybridgen.cli as cli
write = cli.write
cli.write = lambda piece: (os.kill(os.getpid(), signal.SIGINT), write(piece))
sys.exit(cli.main(sys.argv[1:]))
""")
    options = ["--max-new-tokens", "3", "--stats", "none"]
    done = within(warm, tiny_pair, "p", *options, program=program)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_real_interrupt_in_the_middle_of_the_text(
    warm: Warm, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import os, signal, sys
import hybridgen.cli as cli
cli.write = lambda piece: os.kill(os.getpid(), signal.SIGINT)
sys.exit(cli.main(sys.argv[1:]))
""")
    done = within(warm, tiny_pair, "p", program=program)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "\n")
