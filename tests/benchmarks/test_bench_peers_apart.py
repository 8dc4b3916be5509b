"""A peer in a process of its own writes the same, and stands still between its turns."""

import sys
from pathlib import Path
from time import sleep

import pytest
from conftest import TinyPair

from hybridgen.benchmarks.contender import Pair, Place, Work
from hybridgen.benchmarks.peers import apart, transformers_generate

if sys.platform != "linux":
    pytest.skip("processes are looked at through /proc", allow_module_level=True)

GREEDY = {"temperature": 0.0}
PLACE = Place("cpu", "float32", 1)


def state(host: apart.Host) -> str:
    """The letter that the system gives the process; "T" is stopped. It takes a moment."""
    for _ in range(100):
        told = Path(f"/proc/{host.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if told == "T":
            break
        sleep(0.05)
    return told


def test_it_writes_the_same_stands_still_and_outlives_a_fault(
    tiny_pair: TinyPair, tmp_path: Path
) -> None:
    pair = Pair("tiny", str(tiny_pair.slm), str(tiny_pair.llm), "random")
    opening = pair, PLACE, tmp_path, 2
    here = {each.name: each for each in transformers_generate.contenders(*opening)}
    there = {each.name: each for each in apart.contenders("transformers", *opening)}
    assert there.keys() == here.keys() and "transformers assisted" in there
    work = Work([[5, 6, 7]], 8, GREEDY, 0)
    host = next(iter(there.values())).host  # type: ignore[attr-defined]
    for name in ("transformers", "transformers assisted", "transformers lookup"):
        assert state(host) == "T"
        assert there[name].write(work) == here[name].write(work)
        assert (there[name].batch, there[name].options) == (here[name].batch, here[name].options)
    with pytest.raises(RuntimeError, match="ValueError: transformers takes 2 prompts a call"):
        there["transformers"].write(work._replace(prompts=[[1]] * 3))
    assert there["transformers"].write(work) == here["transformers"].write(work)
    host.process.kill()
    with pytest.raises((RuntimeError, OSError)):
        there["transformers"].write(work)
    for each in there.values():
        each.close()
    assert not host.process.is_alive()


def test_a_pair_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    pair = Pair("none", None, str(tmp_path / "nowhere"), "random")
    with pytest.raises(RuntimeError, match="nowhere"):
        next(apart.contenders("transformers", pair, PLACE, tmp_path, 1))
