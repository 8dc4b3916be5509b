"""A peer in a process of its own, which stands still while others take their turns.

Engines keep threads that wait for work by spinning: within one process, or beside it, they would
take the cores from whoever is measured (on two cores, threads of OpenVINO and llama.cpp made torch
nearly three times as slow). So the process is stopped, with all that it has started, but for its
own calls. It also holds its own memory, and may die of its own faults.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work, Written
from hybridgen.benchmarks.peers.base import CannotRun, LLMWriter
from hybridgen.benchmarks.peers.table import peer

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Offer(NamedTuple):
    """A contender over there, as `Contender` has it."""

    name: str
    writers: tuple[str, ...]
    samples: bool
    batch: int
    options: dict[str, Any]


class Trouble(NamedTuple):
    """What went wrong over there; ``cannot_run`` where the peer has no form of the pair."""

    what: str
    cannot_run: bool = False


def contenders(
    name: str, pair: Pair, place: Place, scratch: Path, most: int
) -> Iterator[Contender]:
    """Those of the peer called ``name``, as its module gives them; they share a process."""
    host = Host(name, pair, place, scratch, most)
    for number, offer in enumerate(host.offers):
        yield Apart(host, number, offer)


class Host:
    """The process."""

    def __init__(self, *opening: Any) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *opening))
        self.process.start()
        theirs.close()
        try:
            self.offers: list[Offer] = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, question: tuple[int, Work]) -> Any:
        """Let it go on until it has answered."""
        self._signal(signal.SIGCONT)
        self.connection.send(question)
        return self._answer()

    def close(self) -> None:
        """End it and what it has started."""
        self._signal(signal.SIGKILL)
        self.process.join()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"its process ended with {self.process.exitcode}") from None
        self._signal(signal.SIGSTOP)
        if isinstance(answer, Trouble):
            raise CannotRun(answer.what) if answer.cannot_run else RuntimeError(answer.what)
        return answer

    def _signal(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.killpg(self.process.pid, number)


class Apart(LLMWriter):
    """A contender of the process."""

    def __init__(self, host: Host, number: int, offer: Offer) -> None:
        self.host, self.number = host, number
        self.name, self.writers, self.samples, self.batch, self.options = offer

    def write(self, work: Work) -> Written:
        written: Written = self.host.ask((self.number, work))
        return written

    def close(self) -> None:
        """The process goes with the first of its contenders."""
        self.host.close()


def serve(connection: Connection, name: str, *opening: Any) -> None:
    """In the process: open the peer, tell of its contenders, write what is asked for."""
    os.setsid()  # what the peer starts is stopped with it
    if sys.platform == "linux":  # it may be stopped when the parent dies, and then sees nothing
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        opened = [*peer(name).contenders(*opening)]
    except CannotRun as error:
        connection.send(Trouble(str(error), cannot_run=True))
        return
    except Exception as error:
        connection.send(Trouble(f"{type(error).__name__}: {error}"))
        return
    connection.send(
        [Offer(each.name, each.writers, each.samples, each.batch, each.options) for each in opened]
    )
    while True:
        number, work = connection.recv()
        try:
            connection.send(opened[number].write(work))
        except Exception as error:
            connection.send(Trouble(f"{type(error).__name__}: {error}"))
