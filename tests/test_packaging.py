"""The package installs whole, imports lightly, and its folder `kernels/` shadows nothing."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_kernels_available

ROOT = Path(__file__).parent.parent
PAPERS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PROBE = "from transformers.utils.import_utils import is_kernels_available as f; print(f())"


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """What a fresh Python prints; `path` is put on its path."""
    environment = {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_transformers_finds_the_real_kernels_package_or_none_from_our_root(tmp_path: Path) -> None:
    """`kernels` on the package index is Hugging Face's, and transformers asks whether it is there.

    `python -c` and `python -m pytest` put the working directory on the path, and our root has a
    folder of that name.
    """
    elsewhere = python("-c", PROBE, cwd=tmp_path)
    assert python("-c", PROBE, cwd=ROOT) == elsewhere
    (tmp_path / "test_probe.py").write_text(f"def test_probe():\n    {PROBE}\n")
    pytest_options = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist")
    under_pytest = python(*pytest_options, str(tmp_path / "test_probe.py"), cwd=ROOT)
    assert elsewhere in under_pytest.splitlines()[0]
    assert str(is_kernels_available()) == elsewhere


def test_kernels_are_imported_under_our_own_name() -> None:
    import hybridgen.kernels.sampling as sampling

    assert sampling.__name__ == "hybridgen.kernels.sampling"
    assert (ROOT / "hybridgen" / "kernels").resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_importing_the_package_or_asking_for_help_does_not_import_torch(tmp_path: Path) -> None:
    light = "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    python("-c", f"import sys, hybridgen; {light}", cwd=tmp_path, path=ROOT)
    asked = f"""
import sys
from hybridgen.cli import main
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
{light}
"""
    assert "examples:" in python("-c", asked, cwd=tmp_path, path=ROOT)


def test_the_public_names_resolve_and_are_listed() -> None:
    import hybridgen

    for name in ("GenerationResult", "GenerationStrategy", "HybridGenerator", "verify_exactness"):
        assert getattr(hybridgen, name).__name__ == name
        assert name in hybridgen.__all__
        assert name in dir(hybridgen)
    with pytest.raises(AttributeError, match="no attribute 'Generator'"):
        hybridgen.Generator  # noqa: B018 (the access is the test)


def test_the_installed_metadata() -> None:
    import hybridgen

    about = metadata("hybridgen")
    assert about["Version"] == hybridgen.__version__
    assert about["Requires-Python"] == ">=3.10"
    assert set(about.get_all("Provides-Extra")) == {
        *("flash", "plot", "cpu", "test", "bench", "peers", "dev", "real")
    }
    tried = {name for name in about.get_all("Classifier") if ":: 3." in name or "Operating" in name}
    assert tried == {
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
    }
    assert about.get_all("License-File") == ["LICENSE"]
    (command,) = entry_points(group="console_scripts", name="hybridgen")
    assert command.value == "hybridgen.cli:main"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that an archive may be made of."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", *PAPERS):
        shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("hybridgen", "kernels", "benchmarks", "tests", "examples"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    return copy


def built(kind: str, source: Path) -> Path:
    """A "wheel" or "sdist" of a folder, by the backend that pip uses."""
    python("-c", f"from setuptools.build_meta import build_{kind} as b; b('dist')", cwd=source)
    (made,) = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """What `pip install .` installs."""
    return built("wheel", source)


@pytest.fixture(scope="module")
def archive(source: Path) -> Path:
    """The sources."""
    return built("sdist", source)


@pytest.fixture(scope="module")
def sdist(archive: Path) -> dict[str, tarfile.TarInfo]:
    """Name within the archive of sources -> what it holds there."""
    with tarfile.open(archive) as opened:
        return {entry.name.partition("/")[2]: entry for entry in opened}


def files(folder: Path, *patterns: str) -> set[str]:
    """Files below `folder`, as a wheel names those of hybridgen."""
    return {
        str(path.relative_to(ROOT)) if ROOT / "kernels" not in path.parents else str(path)
        for pattern in patterns
        for path in folder.rglob(pattern)
    }


def test_the_wheel_has_every_module_the_kernels_and_the_pair(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = files(ROOT / "hybridgen", "*.py")
    modules |= {f"hybridgen/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    modules |= {f"hybridgen/benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert "hybridgen/kernels/sampling.py" in modules
    assert modules <= names
    for model in ("slm", "llm"):
        folder = f"hybridgen/pair/{model}"
        parts = ("config.json", "model.safetensors", "tokenizer.json")
        assert {f"{folder}/{name}" for name in parts} <= names
    assert "hybridgen/pair/README.md" in names
    prompts = {path.name for path in (ROOT / "benchmarks" / "prompts").glob("*.jsonl")}
    assert prompts == {"code.jsonl", "spec_bench.jsonl"}
    assert {f"hybridgen/benchmarks/prompts/{name}" for name in prompts} <= names
    assert "hybridgen/benchmarks/kernels/pytest.ini" in names
    assert "hybridgen/py.typed" in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"hybridgen"}, "nothing but hybridgen may be installed, above all not kernels"


def test_the_sources_make_the_same_wheel(wheel: Path, sdist: dict[str, tarfile.TarInfo]) -> None:
    """They hold its files, the kernels too, and no link: where it leads would not be there."""
    installed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert installed <= sdist.keys()
    assert not [name for name, entry in sdist.items() if not (entry.isfile() or entry.isdir())]
    assert {"LICENSE", *PAPERS} <= sdist.keys()
    assert {
        str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")
    } <= sdist.keys()
    assert not [name for name in sdist if name.startswith("tests")], "a part of them is of no use"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        names = [name for name in opened.namelist() if ".dist-info/" not in name]
        return {name: opened.read(name) for name in names}


def test_a_wheel_made_of_the_archive_is_the_same(
    wheel: Path, archive: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = tmp_path.iterdir()
    assert contents(built("wheel", unpacked)) == contents(wheel)


def test_a_checkout_without_links_works_and_makes_the_same_wheel(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    """As on Windows by default, links are files that hold where they lead."""
    unwanted = shutil.ignore_patterns("dist", "build", "*.egg-info")
    copy = shutil.copytree(source, tmp_path / "copy", symlinks=True, ignore=unwanted)
    for name in ("kernels", "benchmarks"):
        (copy / "hybridgen" / name).unlink()
        (copy / "hybridgen" / name).write_text(f"../{name}")
    code = "import hybridgen.kernels.sampling as s, hybridgen.benchmarks.lines as l; "
    code += "print(s.__file__, l.__file__)"
    for where in python("-c", code, cwd=tmp_path, path=copy).split():
        assert where.startswith(str(copy))
    assert contents(built("wheel", copy)) == contents(wheel)


def test_type_checkers_find_what_is_installed_to_be_edited(source: Path, tmp_path: Path) -> None:
    """They read no finders, but follow the paths of .pth files."""
    code = "from setuptools.build_meta import build_editable as b; b('dist')"
    python("-c", code, cwd=source)
    (editable,) = (source / "dist").glob("*editable*.whl")
    paths = {name: text for name, text in contents(editable).items() if name.endswith(".pth")}
    assert [text.decode().strip() for text in paths.values()] == [str(source)]
    editable.unlink()


def test_the_changelog_tells_of_this_version() -> None:
    import hybridgen

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## [Unreleased]\n" in changelog
    assert hybridgen.__version__ in changelog


def test_the_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import hybridgen.kernels.sampling as s, hybridgen as h; print(s.__file__, h.__file__)"
    for where in python("-c", code, cwd=tmp_path, path=tmp_path / "site").split():
        assert where.startswith(str(tmp_path))
