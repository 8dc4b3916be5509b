"""hybridgen: a small and a large language model write one text together.

The names below are imported when first used, so that `import hybridgen` and `hybridgen --help` do
not wait for torch.
"""

from __future__ import annotations

import os.path
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hybridgen.bridge import accelerate, hybrid_generate
    from hybridgen.exactness import verify_exactness
    from hybridgen.generator import HybridGenerator
    from hybridgen.profiling import ProfileResult, TokenProfile
    from hybridgen.result import GenerationResult
    from hybridgen.strategies.custom import GenerationStrategy

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "kernels")):
    # A checkout without links: the folders that they lead to are beside this one.
    __path__.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

__version__ = "0.1.0"
__all__ = [
    "GenerationResult",
    "GenerationStrategy",
    "HybridGenerator",
    "ProfileResult",
    "TokenProfile",
    "accelerate",
    "hybrid_generate",
    "verify_exactness",
]

_HOMES = {
    "GenerationResult": "hybridgen.result",
    "GenerationStrategy": "hybridgen.strategies.custom",
    "HybridGenerator": "hybridgen.generator",
    "ProfileResult": "hybridgen.profiling",
    "TokenProfile": "hybridgen.profiling",
    "accelerate": "hybridgen.bridge",
    "hybrid_generate": "hybridgen.bridge",
    "verify_exactness": "hybridgen.exactness",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
