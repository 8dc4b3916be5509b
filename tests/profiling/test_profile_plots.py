"""Pictures of a profile are drawn, of what they claim to show, and leave pyplot alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.figure import Figure
from profile_values import profile, profiles, token

from hybridgen.profiling import ProfileResult, plots

STARTS = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def example(**given: Any) -> ProfileResult:
    models = ["slm", "llm", "slm", "lookup", "slm"]
    values = [0.1, 0.9, 0.3, 0.2, None]
    tokens = [
        token(i, value=value, entropy=None, epistemic_uncertainty=value and 3 * value, model_used=m)
        for i, (m, value) in enumerate(zip(models, values, strict=True))
    ]
    return profile(tokens, threshold=0.5, **given)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("kind", STARTS)
def test_a_picture_is_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"profile.{kind}"
    example().plot_distributions(path)
    assert path.read_bytes().startswith(STARTS[kind])
    assert [*tmp_path.iterdir()] == [path]


def test_a_picture_of_no_suffix_is_a_png_and_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    example().plot_distributions(str(tmp_path / "profile"))
    assert (tmp_path / "profile").read_bytes().startswith(STARTS["png"])
    with pytest.raises(ValueError, match="xyz"):
        example().plot_distributions(tmp_path / "profile.xyz")
    assert not (tmp_path / "profile.xyz").exists()


def panels(figure: Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Histograms and series by metric."""
    histograms = {axes.get_xlabel().split(" ")[0]: axes for axes in figure.axes[::2]}
    return histograms, {axes.get_ylabel().split(" ")[0]: axes for axes in figure.axes[1::2]}


def test_values_are_split_by_who_wrote(drawn: list[Figure]) -> None:
    plots.plot_distributions(example(), Path("unused"))
    histograms, series = panels(drawn[0])
    assert list(histograms) == list(series) == ["Entropy", "Uncertainty", "Epistemic"]
    labels = [text.get_text() for text in histograms["Uncertainty"].get_legend().get_texts()]
    assert labels == ["SLM: 2", "LLM: 1", "Lookup: 1", "threshold 0.5"]
    groups = histograms["Uncertainty"].containers
    assert [sum(bar.get_height() for bar in group) for group in groups] == [2, 1, 1]
    points = {
        group.get_label(): group.get_offsets().tolist() for group in series["Epistemic"].collections
    }
    assert points == {
        "SLM": [[0, 3 * 0.1], [2, 3 * 0.3]],
        "LLM": [[1, 3 * 0.9]],
        "Lookup": [[3, 3 * 0.2]],
    }
    line = series["Uncertainty"].lines[0].get_ydata()
    assert np.array_equal(line, [0.1, 0.9, 0.3, 0.2, np.nan], equal_nan=True)
    for unmeasured in (histograms["Entropy"], series["Entropy"]):
        assert [text.get_text() for text in unmeasured.texts] == ["measured at no token"]


@pytest.mark.parametrize(("metric", "marked"), [("uncertainty", 1), ("entropy", 0)])
def test_the_threshold_is_marked_on_its_metric_alone(
    drawn: list[Figure], metric: str, marked: int
) -> None:
    plots.plot_distributions(example(metric=metric), Path("unused"))
    histograms, series = panels(drawn[0])
    lines = {
        axes.get_xlabel() + axes.get_ylabel(): [
            (set(line.get_xdata()), set(line.get_ydata()))
            for line in axes.lines
            if str(line.get_label()).startswith("threshold")
        ]
        for axes in drawn[0].axes
    }
    on_metric = [*lines[histograms["Uncertainty"].get_xlabel() + "tokens"]]
    on_metric += lines[series["Uncertainty"].get_ylabel()]
    assert on_metric == [({0.5}, {0, 1}), ({0, 1}, {0.5})][: 2 * marked]
    assert sum(map(len, lines.values())) == 2 * marked


@settings(max_examples=5)
@given(profiles())
def test_any_profile_is_drawn(tmp_path_factory: Any, profiled: ProfileResult) -> None:
    path = tmp_path_factory.getbasetemp() / "any.svg"
    profiled.plot_distributions(path)
    assert path.read_bytes().startswith(STARTS["svg"])


def test_a_strategys_name_is_no_formula(tmp_path: Path) -> None:
    example(stats={"strategy": r"$\frac{$"}).plot_distributions(tmp_path / "profile.png")


def test_pyplot_and_its_settings_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib\n"
        "def settings():\n"  # asked in the ordinary way, the backend's makes pyplot choose one
        "    given = matplotlib.rcParams\n"
        "    return {name: dict.__getitem__(given, name) for name in given}\n"
        "before = settings()\n"
        "from hybridgen.profiling import ProfileResult, TokenProfile\n"
        "token = TokenProfile(1, 'a', 0, 'slm', 0.5, 0.5, 0.5)\n"
        "profile = ProfileResult((token,), 'a', {}, 'entropy', 0.25, 'slm')\n"
        "profile.plot_distributions(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert settings() == before\n"
    )
    path = tmp_path / "profile.png"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert path.exists()


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'hybridgen\[plot\]'"):
        example().plot_distributions(tmp_path / "profile.png")
    assert not [*tmp_path.iterdir()]
