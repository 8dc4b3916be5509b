"""Compile what the launchers would launch, for cards that are not here.

`recording` runs an op's launcher on fake CUDA tensors. Every launch ends in ``JITFunction.run``; a
driver without a card tells it the target, and its warm-up mode compiles instead of launching, so
what comes out are exactly the specialisations that a decode on that card would compile: with the
same constants, argument types, alignments and options, and deduplicated by Triton itself.

The resources are those that the assembler settled on, read from the machine code.

A kernel that the table knows already is not compiled again: its key is the one that Triton's own
cache goes by, of source, argument types, constants and options.
"""

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from hybridgen.kernels.registry import Op

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 65536  # 32-bit, of one multiprocessor, on all of these cards


@dataclass(frozen=True)
class Card:
    """A GPU as far as compilation goes; sizes as in the CUDA programming guide's table of limits.

    shared            bytes that one block may have
    shared_per_sm     bytes of one multiprocessor; a block takes `RESERVED` beside its own
    threads_per_sm    most resident threads of one multiprocessor
    """

    shared: int
    shared_per_sm: int
    threads_per_sm: int


RESERVED = 1024  # bytes of shared memory a block
CARDS = {
    80: Card(163 * 1024, 164 * 1024, 2048),  # A100
    90: Card(227 * 1024, 228 * 1024, 2048),  # H100, H200
    100: Card(227 * 1024, 228 * 1024, 2048),  # B200
    120: Card(99 * 1024, 100 * 1024, 1536),  # RTX 5090
}


class Resources(NamedTuple):
    """What one block of a kernel takes on one card.

    registers  a thread
    shared     bytes
    stack      bytes a thread of local memory, which spilled registers are part of
    spills     instructions that read or write it
    blocks     that one multiprocessor holds at once
    """

    registers: int
    shared: int
    stack: int
    spills: int
    blocks: int


@dataclass
class Launches:
    """What was recorded: the ops called, and the kernels by their specialisation."""

    kernels: dict[str, Any] = field(default_factory=dict)  # compiled, or `Known`
    ops: dict[str, set[str]] = field(default_factory=dict)  # op -> specialisations

    def rows(self, capability: int) -> dict[str, dict[str, Any]]:
        """specialisation -> {"ops": those that launch it, "key", "resources": `Resources` as a
        list, or None of a kernel that was known and not compiled}."""
        return {
            name: {
                "ops": sorted(op for op, names in self.ops.items() if name in names),
                "key": kernel.key,
                "resources": None if is_known(kernel) else list(resources(kernel, capability)),
            }
            for name, kernel in self.kernels.items()
        }


@dataclass
class Known:
    """Stands in for a kernel that is not compiled again, as far as its name goes."""

    src: Any
    metadata: Any
    key: str
    name: str


def is_known(kernel: Any) -> bool:
    return isinstance(kernel, Known)


@contextmanager
def recording(capability: int, known: Container[str] = ()) -> Iterator[Launches]:
    """Within: tensors are fake, ops run their launchers, and launches only compile.

    Kernels whose key is among ``known`` are not even compiled. One card a process: Triton keeps the
    first one's kernels. The interpreter must be off.
    """
    launches, current = Launches(), [""]
    target = GPUTarget("cuda", capability, 32)
    cardless = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        set_current_device=lambda device: None,
        get_active_torch_device=lambda: torch.device("cuda", 0),
    )
    run, compile_kernel = JITFunction.run, triton.compiler.compile

    def compile_unknown(src: Any, target: GPUTarget, options: dict[str, Any]) -> Any:
        parsed = make_backend(target).parse_options({**options, **src.parse_options()})
        key = hashlib.sha256(f"{src.hash()}-{parsed.hash()}".encode()).hexdigest()[:16]
        if key in known:
            return Known(src, parsed, key, src.name)
        kernel = compile_kernel(src, target=target, options=options)
        kernel.key = key
        return kernel

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        args = pointer(args)
        kwargs = {name: pointer(arg) for name, arg in kwargs.items()}
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        name = specialisation(kernel)
        launches.kernels[name] = kernel
        launches.ops.setdefault(current[0], set()).add(name)
        return kernel

    def call(self: Op, first: Any, *rest: Any) -> Any:
        current[0] = self.name
        return self.launcher()(first, *rest)

    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        stack.enter_context(patch.dict("os.environ", TRITON_CACHE_DIR=folder))
        stack.enter_context(patch.object(triton.knobs.cache, "dir", folder))
        stack.enter_context(patch.object(triton.compiler, "compile", compile_unknown))
        stack.enter_context(patch.object(JITFunction, "run", compile_only))
        stack.enter_context(patch.object(Op, "__call__", call))
        stack.enter_context(FakeTensorMode())
        driver.set_active(cardless)
        yield launches


def pointer(value: Any) -> Any:
    """A stand-in for a fake tensor, which has no address: as if its storage began at 0.

    torch's allocator aligns storages to 512 bytes, so views keep the alignment they would have.
    """
    if isinstance(value, tuple):
        values = map(pointer, value)
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
    if not isinstance(value, torch.Tensor):
        return value
    address = value.storage_offset() * value.element_size()
    return SimpleNamespace(
        dtype=value.dtype, shape=value.shape, data_ptr=lambda: address, ptr_range=lambda: 1 << 40
    )


def specialisation(kernel: Any) -> str:
    """A compiled kernel in words: its constants, argument types, which are divisible by 16."""
    options = kernel.metadata
    arguments = described(kernel.src, kernel.src.signature, kernel.src.signature.values())
    launch = f"warps={options.num_warps} stages={options.num_stages}"
    if options.maxnreg:
        launch += f" registers<={options.maxnreg}"
    return f"{kernel.name}({arguments}) {launch}"


def described(
    source: Any, names: Iterable[str], kinds: Iterable[Any], path: tuple[int, ...] = ()
) -> str:
    """The arguments of a kernel, or of the named tuple at ``path`` among them.

    Without PDL, which every kernel has: a launch with it is named as the same one without.
    """
    words = []
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if name == "PDL":
            continue
        place = (*path, index)
        if isinstance(kind, tuple):
            words.append(f"{name}({described(source, kind._fields, kind, place)})")
        elif kind == "constexpr":
            words.append(f"{name}={shown(source.constants[place])}")
        else:
            aligned = any(key == "tt.divisibility" for key, _ in source.attrs.get(place, ()))
            words.append(f"{name}:{kind}{'%16' if aligned else ''}")
    return ", ".join(words)


def shown(value: Any) -> str:
    return str(getattr(value, "value", value))


def resources(kernel: Any, capability: int) -> Resources:
    """Registers, memory and occupancy of a compiled kernel."""
    card = CARDS[capability]
    usage = tool("cuobjdump", "--dump-resource-usage", kernel)
    numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    registers, stack = numbers["REG"], numbers["STACK"] + numbers["LOCAL"]
    code = tool("nvdisasm", "-c", kernel) if stack else ""
    # Triton's own is all dynamic; from sm_90 on the static number is what the system reserves.
    shared = kernel.metadata.shared + max(numbers["SHARED"] - RESERVED, 0)
    warps = kernel.metadata.num_warps
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps  # handed out by 256
    blocks = min(
        by_registers,
        card.shared_per_sm // (shared + RESERVED),
        card.threads_per_sm // (32 * warps),
        32,
    )
    return Resources(registers, shared, stack, len(re.findall(r"\b(?:LDL|STL)\b", code)), blocks)


def tool(name: str, option: str, kernel: Any) -> str:
    """What one of the CUDA tools in Triton's package says of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / name, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
