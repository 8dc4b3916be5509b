"""Arrows point down: no module imports from a layer above its own, and no file is too long."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 400  # lines


class Layer(NamedTuple):
    """Modules by name within hybridgen, "x.*" for all of a folder; and the layers they may use."""

    modules: str
    may_import: str = ""


# From the bottom up. A module is in the first layer that has it, and may import from its own too.
LAYERS = {
    "kernels": Layer("kernels.*"),
    "leaves": Layer(
        "checks names prefix named_pairs pair engine.limits engine.sampling engine.adjustment"
    ),
    "training of the embedded pair": Layer("pair.*", "leaves"),
    "call": Layer(
        "fields parameters processors strategies.declarations recommendations prompts request "
        "detokenizer text result",
        "leaves",
    ),
    "profiles": Layer(
        "profiling profiling.profile profiling.distribution profiling.merging profiling.files "
        "profiling.summary profiling.spans profiling.plots profiling.page profiling.report "
        "profiling.auroc profiling.quality profiling.quality_plot",
        "leaves call",
    ),
    "engine": Layer("engine engine.*", "kernels leaves"),
    "utilities": Layer("utils", "kernels leaves call"),
    "strategies": Layer("strategies strategies.*", "kernels leaves call engine"),
    "recording": Layer(
        "profiling.asked profiling.measuring profiling.record",
        "kernels leaves call profiles engine strategies",
    ),
    "generator": Layer(
        "generating generator chat prompt_file exactness profiling.score profiling.random_router "
        "profiling.routed profiling.calibrate profiling.sweep",
        "kernels leaves call profiles engine strategies recording",
    ),
    "bridge": Layer("bridge bridge.*", "leaves call engine strategies"),
    "doors": Layer(
        "hybridgen __main__ cli cli_* benchmarks.__main__",
        "leaves call profiles recording strategies generator bridge benchmarks",
    ),
    "benchmarks": Layer(
        "benchmarks benchmarks.*",
        "kernels leaves call profiles recording engine strategies generator bridge doors",
    ),
}


def modules() -> dict[str, Path]:
    """Name within hybridgen -> file, of every module; the package itself is "hybridgen"."""
    found = {}
    for folder in ("hybridgen", "kernels", "benchmarks"):  # two are links that no walk follows
        base = ROOT / folder if folder == "hybridgen" else ROOT
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            found[name.removesuffix(".__init__").replace("__init__", "hybridgen")] = path
    return found


MODULES = modules()


def layer(module: str) -> str | None:
    for name, (members, _) in LAYERS.items():
        if any(fnmatchcase(module, member) for member in members.split()):
            return name
    return None


def imports(module: str) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it and be it only for their types."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import: name the module in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, within = name.partition(".")
            if package == "hybridgen":
                yield within if within in MODULES else within.rpartition(".")[0] or "hybridgen"


def test_every_module_has_a_layer() -> None:
    homeless = [module for module in MODULES if layer(module) is None]
    assert not homeless, f"say in LAYERS of {Path(__file__).name} where {homeless} belong"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_upward(module: str) -> None:
    own = layer(module)
    if own is None:
        pytest.skip("it has no layer")
    allowed = {own, *LAYERS[own].may_import.split()}
    wrong = [f"{name} ({layer(name)})" for name in imports(module) if layer(name) not in allowed]
    assert not wrong, f"{module} ({own}) may import only from {sorted(allowed)}, not {wrong}"


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("hybridgen", "kernels", "benchmarks", "examples", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    long = sorted(name for name, lines in lengths.items() if lines > LONGEST)
    assert not long, f"longer than {LONGEST} lines, split by idea: {long}"
