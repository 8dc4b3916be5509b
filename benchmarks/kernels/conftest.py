"""Options, the device and its bandwidth, and the table at the end of a run."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import pytest
import torch
from harness import Case, Row, measure, table

from hybridgen.benchmarks.bandwidth import read_bandwidth

ROWS = pytest.StashKey[dict[str, list[Row]]]()  # by file
BANDWIDTH = pytest.StashKey[float]()


class Run(Protocol):
    """Check and time a case, and keep its row for the table."""

    def __call__(self, case: Case) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption("--device", default=default, choices=["cpu", "cuda"])
    parser.addoption("--smoke", action="store_true", help="only the first case of each file")
    parser.addoption(
        "--pdl", action="store_true", help="time each op without programmatic dependent launch too"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("benchmarks need the machine for themselves: run without -n")
    config.stash[ROWS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each file's first case is its smallest."""
    if config.getoption("smoke"):
        first: dict[Any, pytest.Item] = {}
        for item in items:
            first.setdefault(item.path, item)
        items[:] = first.values()


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("device"))


@pytest.fixture(scope="session")
def bandwidth(pytestconfig: pytest.Config, device: torch.device) -> float:
    """Bytes per second, measured in this run."""
    pytestconfig.stash[BANDWIDTH] = measured = read_bandwidth(device)
    return measured


@pytest.fixture
def run(
    request: pytest.FixtureRequest, benchmark: Any, device: torch.device, bandwidth: float
) -> Run:
    rows = request.config.stash[ROWS].setdefault(request.path.stem, [])
    pdl = request.config.getoption("pdl")

    def run_case(case: Case) -> None:
        rows.append(measure(case, benchmark, device, bandwidth, pdl))

    return run_case


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if BANDWIDTH not in config.stash:
        return
    on_gpu = config.getoption("device") == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else platform.machine()
    write = terminalreporter.write_line
    write("")
    write(f"{machine}, {config.stash[BANDWIDTH] / 1e9:.1f} GB/s measured in this run; {versions()}")
    for name, rows in config.stash[ROWS].items():
        write("")
        write(name.removeprefix("bench_"))
        for line in table(rows, on_gpu):
            write(line)


def versions() -> str:
    """Of what is installed and measured."""
    found = []
    for name in ("torch", "triton", "transformers", "flash-attn", "flashinfer-python"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
