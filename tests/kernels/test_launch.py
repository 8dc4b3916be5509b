"""Programmatic dependent launch, compiled without a card: asked for, every kernel waits first.

That results are then the same to the bit is for a card to show: `tests/gpu/test_engine.py`.
"""

import json
import re
from types import SimpleNamespace

import pytest
import torch

if torch.version.cuda is None:  # `.ci/run` insists on a CUDA build
    pytest.skip("fake CUDA tensors need a CUDA build of torch (no card)", allow_module_level=True)

import resources
from all_ops import OPS
from aot import CARDS, Resources

from hybridgen.kernels import triton_utils
from hybridgen.kernels.launch import is_wanted, programmatic_dependent_launch
from hybridgen.kernels.launch_triton import FIRST_CAPABILITY, PROVEN, launch_options

# All of the cards that can; of the others a few show that nothing is asked of them.
OF_CARDS = [(card, ("--every",) if card >= FIRST_CAPABILITY else ()) for card in CARDS]


@pytest.mark.parametrize(
    "card, options",
    [(90, ())] + [pytest.param(*each, marks=pytest.mark.cards) for each in OF_CARDS],
)
def test_every_kernel_waits_before_it_touches_memory(card: int, options: tuple[str, ...]) -> None:
    rows = resources.measured(card, resources.DEPENDENTS, options)
    assert {op for row in rows.values() for op in row["ops"]} == set(OPS)
    for name, row in rows.items():
        dependent = card >= FIRST_CAPABILITY
        assert row["dependent"] == dependent, name
        assert row["early"] == ([] if dependent else NEITHER), name
    assert not resources.complaints(rows, card)
    assert spills(rows) == recorded_spills(rows, card)


NEITHER = ["0 griddepcontrol.wait, 0 griddepcontrol.launch_dependents"]


def spills(rows: resources.Rows) -> dict[str, int]:
    return {name: Resources(*row["resources"]).spills for name, row in rows.items()}


def recorded_spills(rows: resources.Rows, card: int) -> dict[str, int]:
    """Of the same kernels as they are launched otherwise; another Triton's may differ."""
    recorded = json.loads(resources.TABLE.read_text())
    if recorded["triton"] != resources.triton.__version__:
        return spills(rows)
    kernels = {name: {"resources": recorded["kernels"][name][f"sm_{card}"][:-2]} for name in rows}
    return spills(kernels)


@pytest.mark.parametrize(
    "code, found",
    [
        ("mov wait signal ld ret", []),
        ("mov ld wait signal ret", ["ld"]),
        ("mov bra wait signal st", ["bra"]),
        ("signal wait ld", ["signal"]),
        ("mov ld", ["0 wait, 0 signal"]),
        ("wait signal wait ld", ["2 wait, 1 signal"]),
    ],
)
def test_what_comes_before_the_wait_is_found(code: str, found: list[str]) -> None:
    from dependents import early

    assert early(code.split(), "wait", "signal", re.compile("ld|st|bra")) == found


@pytest.mark.parametrize("card", [*CARDS, 942])
def test_a_card_is_asked_only_for_what_it_has(card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = SimpleNamespace(backend="hip" if card == 942 else "cuda", arch=card)
    active = SimpleNamespace(get_current_target=lambda: target)
    monkeypatch.setattr(triton_utils, "driver", SimpleNamespace(active=active))
    with programmatic_dependent_launch():
        assert launch_options() == {}  # in the interpreter
        monkeypatch.setattr(triton_utils, "interpreted", lambda: False)
        has = 90 <= card < 942
        assert launch_options() == ({"PDL": True, "launch_pdl": True} if has else {})
        with programmatic_dependent_launch(False):
            assert launch_options() == {}
    proven = {"PDL": True, "launch_pdl": True} if card in PROVEN else {}
    assert launch_options() == proven
    assert is_wanted() is None
