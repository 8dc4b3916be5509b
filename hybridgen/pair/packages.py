"""Fetch Python sources of permissively licensed packages, for ``train --packages FOLDER``.

``python -m hybridgen.pair.packages --folder FOLDER`` downloads the wheels below with pip, keeps
what is worth learning from, and writes FOLDER/texts.jsonl, one file a line, and
FOLDER/sources.json: each package's version, licence and counts. A package is in the held-out set by
the hash of its name, and then with all of its files.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

from hybridgen.pair import data
from hybridgen.pair.clean import Seen, clean

PACKAGES = """
aiohttp==3.14.5 algorithms==1.0.1 altair==6.3.0 anyio==4.16.0 apache-airflow-core==3.3.2
arcade==3.3.3 astropy==8.0.2 attrs==26.1.0 biopython==1.88 black==26.10.1 bokeh==3.10.2
boltons==26.2.0 botorch==0.18.1 celery==5.7.0 cinder==29.0.0 cirq-core==1.7.0 click==8.5.1
coverage==7.17.5 cvxpy==1.9.3 dagster==1.13.29 darts==0.48.1 dask==2026.8.0 datasets==5.2.0
deepchem==2.5.0 diffusers==0.42.1 dipy==1.12.1 distributed==2026.8.0 django==6.1.3
fastapi==0.165.0 flask==3.1.3 flax==0.12.12 gpytorch==1.15.2 gradio==6.31.0 holoviews==1.23.2
homeassistant==2025.4.4 httpx==0.28.1 ipython==9.18.1 jax==0.12.0.1 jedi==0.20.1 jinja2==3.1.6
keras==3.15.1 langchain==1.5.2 lark==1.3.1 lifelines==0.30.3 luigi==3.8.1 matplotlib==3.11.2
mitmproxy==12.3.1 mlflow==3.18.0 mlxtend==0.25.0 mne==1.13.2 more-itertools==11.2.1 moto==5.2.5
mpmath==1.4.1 mypy==2.4.1 networkx==3.7 neutron==29.0.0 nibabel==5.4.2 nilearn==0.14.1
nltk==3.10.4 nova==34.0.0 numba==0.68.1 numpy==2.5.5 optax==0.2.8 optuna==5.0.0 pandas==3.1.1
parso==0.8.7 pennylane==0.45.1 pip==26.3 pydantic==2.14.4 pydicom==3.0.2 pygments==2.21.0
pymc==6.4.0 pyod==3.6.7 pyomo==6.10.1 pyparsing==3.3.3 pyro-ppl==1.9.2 pyscf==2.14.0 pytest==9.2.0
qiskit==2.6.2 ray==2.60.0 requests==2.34.2 rich==15.0.0 scikit-image==0.26.0 scikit-learn==1.9.1
scipy==1.18.1 scrapy==2.19.0 seaborn==0.13.2 setuptools==84.2.1 sktime==1.2.0
sortedcontainers==2.4.0 spacy==3.8.18 sphinx==9.2.0 sqlalchemy==2.1.9 starlette==1.10.0
statsmodels==0.15.0 streamlit==1.67.0 sunpy==8.0.1 sympy==1.14.0 textual==8.2.8 toolz==1.2.0
torch==2.14.1 tornado==6.6.1 tox==4.67.15 transformers==5.24.0 trio==0.35.0 twisted==26.10.0
virtualenv==21.15.11 wagtail==8.0.1 werkzeug==3.1.9 xarray==2026.9.0 yapf==0.43.0 yt==4.4.3
"""

# One platform's wheels hold the same Python as another's; these are small.
PLATFORMS = ("macosx_10_13_x86_64", "macosx_11_0_arm64", "macosx_12_0_arm64", "macosx_14_0_arm64")
PYTHON = "3.13"

PERMISSIVE = ("MIT", "BSD", "APACHE", "PSF", "PYTHON", "HPND", "ISC", "ZLIB", "BSL", "0BSD", "CC0")
SKIPPED = frozenset(
    {"test", "tests", "testing", "conftest", "vendor", "vendored", "extern", "external"}
    | {"externals", "third_party", "thirdparty", "locale", "locales", "migrations", "data"}
)
# No package may fill the corpus: what is above is left out, by the hash of the path.
MAX_PACKAGE_BYTES = 9_000_000


@dataclass
class Source:
    """A package as the model card lists it."""

    name: str
    version: str
    licence: str
    held_out: bool
    files: int = 0
    bytes: int = 0


def download(folder: Path) -> None:
    """Fetch each wheel that is not there yet, without what it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {package_name(wheel) for wheel in folder.glob("*.whl")}
    missing = [package for package in PACKAGES.split() if package.split("==")[0] not in there]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={PYTHON}", *platforms]
    if missing:
        subprocess.run([*command, f"--dest={folder}", *missing], check=True)


def licence(metadata: Message) -> str:
    """What a wheel says of its licence: the expression, the classifiers, or the short field."""
    if expression := metadata["License-Expression"]:
        return str(expression)
    classifiers = metadata.get_all("Classifier", [])
    named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: OSI Approved ::")]
    field = str(metadata["License"] or "")
    return " AND ".join(named) or (field if len(field) < 40 else field.split("\n")[0])


def is_permissive(text: str) -> bool:
    """True when every part of a licence's expression is one of the permissive ones."""
    words = re.sub(r" WITH [\w.-]+", "", text.upper())  # an exception only adds to what is allowed
    parts = re.split(r" AND | OR |[;,]", words)
    return all(any(name in part for name in PERMISSIVE) for part in parts)


def read(wheel: Path) -> tuple[Source, dict[str, str]]:
    """A wheel's description and its cleaned texts by path, those kept first under the limit."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata_name = next(n for n in names if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode("utf-8", "replace"))
        chosen = sorted(filter(is_wanted, names), key=lambda n: hashlib.sha256(n.encode()).digest())
        texts = {}
        for name in chosen:
            text = clean(archive.read(name).decode("utf-8", "replace"))
            if text is not None:
                texts[name] = text
    name = str(metadata["Name"])
    held_out = data.is_held_out(name.lower())
    return Source(name, str(metadata["Version"]), licence(metadata), held_out), texts


def is_wanted(path: str) -> bool:
    """True for a Python file outside of tests and vendored code."""
    *folders, name = path.lower().split("/")
    if not name.endswith(".py") or name.startswith("test_"):
        return False
    if name.endswith(("_test.py", "_pb2.py")):
        return False
    return not SKIPPED.intersection(part.lstrip("_") for part in [*folders, name[:-3]])


def collect(wheels: list[Path]) -> Iterator[tuple[Source, dict[str, str]]]:
    """Every package without near-duplicates, the held-out ones first: no text is on both sides."""
    library = data.load_corpus()
    seen = Seen()
    for text in [*library.held_out.values(), *library.train.values()]:
        seen.add(text)
    # One wheel a package: a folder may hold several, for different platforms.
    by_name = {package_name(wheel): wheel for wheel in sorted(wheels, reverse=True)}
    for name in sorted(by_name, key=lambda name: (not data.is_held_out(name), name)):
        source, texts = read(by_name[name])
        if not is_permissive(source.licence):
            print(f"{source.name} left out: its licence is {source.licence!r}")
            continue
        kept: dict[str, str] = {}
        for path, text in texts.items():
            size = len(text.encode())
            if seen.add(text) and source.bytes + size <= MAX_PACKAGE_BYTES:
                kept[path] = text
                source.files += 1
                source.bytes += size
        yield source, kept


def package_name(wheel: Path) -> str:
    """The package of a wheel's file, spelled as on the index."""
    return wheel.name.split("-")[0].replace("_", "-").lower()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hybridgen.pair.packages", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/packages"), help="%(default)s")
    folder = parser.parse_args(arguments).folder
    download(folder / "wheels")
    sources = []
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for source, texts in collect(list((folder / "wheels").glob("*.whl"))):
            sources.append(asdict(source))
            for path, text in texts.items():
                row = {"path": path, "held_out": source.held_out, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
