"""Programmatic dependent launch: kernels that begin before those ahead of them have ended.

Within a CUDA graph a kernel begins about 1.3 us after the one before it has ended, and a round has
hundreds. From sm_90 on it may be launched early: once every program of the one before it has
called ``griddepcontrol.launch_dependents``, it takes what room there is on the multiprocessors,
and its programs stop at ``griddepcontrol.wait`` until the kernel before it has ended and what that
wrote can be read. (CUDA programming guide, "Programmatic Dependent Launch and Synchronization".)

**On where a card has proven it** (`launch_triton.PROVEN`), elsewhere if it is asked for. On an H200
a step of Qwen3-1.7B takes 9 % less time with it, one of Qwen3-8B 1 %; `hybridgen bench gpu`
measures it ("without PDL").

    with programmatic_dependent_launch(False):
        generator.generate(...)  # captures its rounds; a replay launches as was captured

**Order.** Every program of a kernel of ours waits before it reads or writes any memory (but for
the norm's gain, which nothing writes, and for what attention asks for to the L2 cache, where it
guesses by a number that may be about to change), so that

- a kernel does not end before the one ahead of it has: what a kernel reads was written by any of
  those before it, not by the last one alone;
- nothing is overwritten that a kernel ahead still reads, when memory is used again.

A program calls ``launch_dependents`` right after its wait, not before it: no more than one kernel
then stands waiting behind the one that works. (Before it was tried too, and was no faster.) A
kernel that is launched without the attribute, torch's own for instance, begins when all before it
has ended, as ever. So results are the same to the bit.

Programs that wait take room. If one of the next kernel fits beside each of this one, they are not
spread evenly when this one has ended: a multiprocessor that was idle gets two, which then take
twice as long as the others. `linear_triton.py` sees to that. For a product to bring its first
16 to 64 KB of weights to the L2 cache ahead of its wait was tried on an H200, with the signal ahead
too: steps of Qwen3-1.7B took up to 3 % less time, of Qwen3-8B 2 to 4 % more, speculation no less.

Triton 3.6 and later launch so with ``launch_pdl=True``, in a capture too. In CUDA graphs that is
of CUDA 12.3 and later; sgl-project/sglang#18596 saw a capture with it fail on an RTX 5090.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted: ContextVar[bool | None] = ContextVar("programmatic_dependent_launch", default=None)


@contextmanager
def programmatic_dependent_launch(wanted: bool = True) -> Iterator[None]:
    """Within, in this thread: our kernels are launched, or captured, as programmatic dependents.

    wanted  False: as they are without

    Of no effect on cards before sm_90, in Triton's interpreter and on a CPU.
    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_wanted() -> bool | None:
    """What this thread has asked for; None: nothing."""
    return _wanted.get()
