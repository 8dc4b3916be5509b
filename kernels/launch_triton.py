"""`launch.py` in Triton: what each kernel begins with, and what each launch is given for it."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hybridgen.kernels.launch import is_wanted
from hybridgen.kernels.triton_utils import architecture

FIRST_CAPABILITY = 90
PROVEN = (90,)  # where it has been measured to pay


def launch_options() -> dict[str, bool]:
    """PDL, for the kernel, and Triton's launch_pdl; nothing where the current device has neither.

    So without it the compiled kernels are those of a kernel that knows nothing of it.
    """
    wanted = is_wanted()
    card = architecture()
    pays = card in PROVEN if wanted is None else wanted
    if pays and card >= FIRST_CAPABILITY:
        return {"PDL": True, "launch_pdl": True}
    return {}


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until the kernel before has ended, then let the next one begin to wait for this one.

    Every program of every kernel begins with it, before it touches memory or returns.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch(pointers, mask):
    """Bring the lines of 128 bytes that ``pointers`` are in to the L2 cache; nothing is read.

    Allowed before the wait: what a kernel ahead may still write goes through the same cache.
    """
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [pointers, mask.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
