"""Products by tile: what is wrong has no time. Kernels are interpreted, so times say nothing."""

from typing import Any

import pytest
import torch

from hybridgen.benchmarks import tiles
from hybridgen.benchmarks.kernels.shapes import MODELS

CPU = torch.device("cpu")


@pytest.mark.parametrize("gated", [False, True])
def test_every_tile_is_timed(gated: bool) -> None:
    few = {
        name: tile
        for name, tile in tiles.tiles(gated)
        if name in ("32 outputs, 64 deep, 4 stages", "64 outputs, 32 deep, 3 stages")
    }
    found = tiles.measured(tiles.Product("small", gated, 40, 272, 3), few, CPU)
    names = {*few, *(f"{name}, without PDL" for name in few), "F.linear"}
    assert found.keys() == names and len(few) == 2
    assert [*found.values()] == sorted(found.values()) and min(found.values()) > 0


def test_a_wrong_tile_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = tiles._launch

    def spoiled(product: Any, tile: Any, *rest: Any) -> torch.Tensor:
        return launch(product, tile, *rest) + (tile.outputs == 16)

    monkeypatch.setattr(tiles, "_launch", spoiled)
    of = {n: t for n, t in tiles.tiles(False) if n in ("16 outputs, 64 deep, 4 stages",)}
    of |= {n: t for n, t in tiles.tiles(False) if n == "32 outputs, 64 deep, 4 stages"}
    found = tiles.measured(tiles.Product("small", False, 40, 272, 3), of, CPU)
    wrong = {name: value for name, value in found.items() if isinstance(value, str)}
    assert {name.split(",")[0] for name in wrong} == {"16 outputs"}
    assert all(value.startswith("AssertionError: wrong by") for value in wrong.values())
    assert [*found][-2:] == [*wrong]


def test_the_products_are_those_of_both_models() -> None:
    found = {product.name: product for product in tiles.products(5)}
    assert len(found) == 5 * 2 and all(product.rows == 5 for product in found.values())
    large = MODELS["Qwen3-8B"]
    assert found["Qwen3-8B gate and up"][1:4] == (True, large.intermediate, large.hidden)
    assert found["Qwen3-8B QKV"].columns == 6144


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is none here"):
        tiles.main(tiles.parse([]))
