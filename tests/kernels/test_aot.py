"""Every kernel that a decode launches compiles for every card, within the card's limits.

Compiled without a card, each in a process of its own (see `aot.py`): the kernels of this process
are interpreted. What they take is held in `resources.json`.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

if torch.version.cuda is None:  # `.ci/run` insists on a CUDA build
    pytest.skip("fake CUDA tensors need a CUDA build of torch (no card)", allow_module_level=True)

import resources
from all_ops import OPS
from aot import CARDS


@pytest.mark.cards  # minutes of a core for each: `.ci/run` asks for them
@pytest.mark.parametrize("card", CARDS)
def test_every_kernel_is_in_the_table_and_within_the_cards_limits(card: int) -> None:
    """Run `python tests/kernels/resources.py --write` after a kernel or a launcher changed."""
    rows = resources.measured(card)
    assert not resources.complaints(rows, card)
    assert not resources.differences(rows, card)


@pytest.mark.parametrize("card", CARDS)
def test_the_table_holds_every_op_and_no_faults(card: int) -> None:
    recorded = json.loads(resources.TABLE.read_text())["kernels"]
    column = f"sm_{card}"
    launching = {op for row in recorded.values() if column in row for op in row["ops"]}
    assert launching == set(OPS)
    rows = {n: {"resources": row[column][:-2]} for n, row in recorded.items() if column in row}
    assert not resources.complaints(rows, card)


@pytest.mark.parametrize("card", CARDS)
def test_tiles_of_many_rows_add_up_a_row_as_tiles_of_few(card: int) -> None:
    """Products of 16 rows in the same steps, each warp its quarter; nothing else is summed in an
    order that the compiler chooses."""
    rows = resources.measured(card, Path(__file__).with_name("sum_orders.py"))
    for name, orders in rows.items():
        assert orders["few"] == orders["many"], name
        assert orders["few"]["products"] == ["1, 16, 8", "4, 1, 1"], name
        assert not orders["few"]["summed"], name


@lru_cache
def planted(card: int) -> dict[str, Any]:
    return resources.measured(card, Path(__file__).with_name("planted.py"))


@pytest.mark.parametrize("card", CARDS)
def test_planted_faults_are_found(card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted(card)
    harmless = {name: row for name, row in rows.items() if name.startswith("harmless(")}
    complaints = resources.complaints(rows, card)
    assert [text.split("(")[0] for text in complaints] == [
        f"sm_{card} spilling",
        f"sm_{card} oversized",
    ]
    assert "spills" in complaints[0] and "shared memory" in complaints[1]
    monkeypatch.setattr(resources, "INTENDED", {"harmless": 33})
    assert len(resources.complaints(harmless, card)) == len(harmless)


def test_launches_are_told_apart_as_triton_tells_them_apart() -> None:
    """By type, by alignment of addresses and integers, and the integer 1; in a group too."""
    rows = planted(80)
    options = " warps=4 stages=1"
    assert {name for name in rows if name.startswith("harmless(")} == {
        f"harmless({arguments}){options}"
        for arguments in (
            "x:*bf16%16, n:i32%16",
            "x:*bf16%16, n:i32",
            "x:*bf16, n:i32",
            "x:*bf16%16, n=1",
        )
    }
    assert {name for name in rows if name.startswith("grouped(")} == {
        f"grouped(vector({fields})){options}"
        for fields in ("x:*bf16%16, n:i32%16", "x:*bf16, n=1", "x:*bf16%16, n=None")
    }


def test_a_table_that_differs_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = {"ops": ["sample"], "key": "5eed", "resources": [32, 0, 0, 0, 16]}
    rows = {"kernel(x:*bf16)": kernel}
    table = tmp_path / "resources.json"
    monkeypatch.setattr(resources, "TABLE", table)

    table.write_text(resources.table({80: rows, 90: {}}))
    assert not resources.differences(rows, 80)
    assert not resources.differences({}, 90)
    assert resources.differences(rows, 90) == ["sm_90 kernel(x:*bf16): not in the table"]
    assert resources.differences({}, 80) == ["sm_80 kernel(x:*bf16): no longer launched"]

    more = {"kernel(x:*bf16)": {**kernel, "resources": [33, 0, 0, 0, 16]}}
    assert "registers=33" in resources.differences(more, 80)[0]
    other = {"kernel(x:*bf16)": {**kernel, "ops": ["entropy"]}}
    assert "entropy" in resources.differences(other, 80)[0]
    changed = {"kernel(x:*bf16)": {**kernel, "key": "f00d"}}
    assert "another source" in resources.differences(changed, 80)[0]

    assert resources.keys(80) == {"5eed": kernel["resources"]}

    monkeypatch.setattr(resources.triton, "__version__", "another")
    assert not resources.differences(more, 80)
    assert resources.keys(80) == {}
