"""Package hybridgen; `kernels` and `benchmarks` within it are links to the top-level folders.

A checkout without links (Windows, some archives) has files in their places, and the folders are
mapped. Where the links are there, or folders as in an archive of sources, what is installed to be
edited is found by the checkout's path alone, so that type checkers find it too.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
LINKED = ("kernels", "benchmarks")
IS_WHOLE = all((ROOT / "hybridgen" / name).is_dir() for name in LINKED)
NO_CODE = ["*.results*", "*benchmarks.prompts*"]
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "hybridgen/__init__.py").read_text())[1]


def packages() -> list[str]:
    """The names of all, those that are linked too."""
    found = find_namespace_packages(include=["hybridgen", "hybridgen.*"], exclude=NO_CODE)
    if IS_WHOLE:
        return found
    linked = [f"{name}{rest}" for name in LINKED for rest in ("", ".*")]
    beside = find_namespace_packages(include=linked, exclude=NO_CODE)
    return found + [f"hybridgen.{name}" for name in beside]


setup(
    name="hybridgen",
    version=VERSION,
    description="A small and a large language model write one text together",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=packages(),
    package_dir={"": "."} if IS_WHOLE else {f"hybridgen.{name}": name for name in LINKED},
    package_data={
        "hybridgen": ["py.typed"],
        "hybridgen.benchmarks": ["prompts/*.jsonl", "kernels/pytest.ini"],
        "hybridgen.pair": ["**/*.json", "**/*.safetensors", "**/*.md"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        'triton>=3.6; sys_platform == "linux"',
        "numpy>=1.26",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "tqdm>=4.60",
    ],
    extras_require={
        "flash": ["flash-attn>=2.8"],
        "plot": ["matplotlib>=3.8"],
        "cpu": ["numba>=0.62"],
        "peers": [
            "xllamacpp>=2026.10",
            "gguf>=0.10",
            "ctranslate2>=4.8",
            "openvino-genai>=2026.4",
        ],
        "bench": ["matplotlib>=3.8", "pytest>=8.2", "pytest-benchmark>=5"],
        "test": [
            "pytest>=8.2",
            "pytest-benchmark>=5",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "scipy>=1.11",
            "jinja2>=3.1",
            "setuptools>=77",
            "matplotlib>=3.8",
            "pandas>=2",
            "pdoc>=15",
            "numba>=0.62",
        ],
        "real": ["accelerate>=1", "gguf>=0.10"],
        "dev": ["ruff>=0.12", "mypy>=1.15"],
    },
    entry_points={"console_scripts": ["hybridgen = hybridgen.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
