"""Every op of the package by name, whatever modules were imported before."""

from importlib import import_module
from pathlib import Path

from hybridgen.kernels import registry

_MODULES = [
    import_module(f"hybridgen.kernels.{path.stem}")
    for path in sorted(Path(registry.__file__).parent.glob("*.py"))
    if not path.stem.endswith("_triton") and path.stem != "triton_utils"
]
OPS: dict[str, registry.Op] = {
    value.name: value
    for module in _MODULES
    for value in vars(module).values()
    if isinstance(value, registry.Op)
}
assert {f"hybridgen::{name}" for name in OPS} == registry.LIBRARY._op_defs
