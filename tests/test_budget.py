"""A round launches and moves no more than the table says, without a card.

After a change that is meant to, write the table anew, and look at what changed in it:
``python -m benchmarks.budget --table tests/budget.json``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if torch.version.cuda is None:
    pytest.skip("fake CUDA tensors need a CUDA build of torch (no card)", allow_module_level=True)

from torch._subclasses.fake_tensor import FakeTensorMode

TABLE = Path(__file__).with_name("budget.json")


@pytest.fixture
def budget() -> ModuleType:
    from hybridgen.benchmarks import budget

    return budget


def test_the_table_is_what_the_rounds_launch_and_move(budget: ModuleType) -> None:
    """Launches to the one, bytes to 0.1 MB a token."""
    found = [one for rows in budget.BATCHES for one in budget.budgets(rows)]
    assert json.loads(budget.table(found)) == json.loads(TABLE.read_text())


def test_layers_are_what_the_design_counts(budget: ModuleType) -> None:
    """Of the LLM's step: three products and one output a layer, and the cost of its weights."""
    (step,) = budget.measured(1, 100, {"llm step": budget.kinds()["llm step"]}).values()
    layers, weights = budget.LLM.layers, 15.1e9 - 2 * 151936 * 4096
    calls = [call.op for call in step]
    assert calls.count("attention") == calls.count("norm_gated_linear") == layers
    assert calls.count("norm_linear") == layers + 1
    assert calls.count("linear_residual") == 2 * layers
    read = sum(call.cost.read for call in step)
    assert read == pytest.approx(weights + 2 * 151936 * 4096, rel=0.01)


def test_an_int8_slm_halves_what_drafts_read(budget: ModuleType) -> None:
    """And a round is predicted to take no more than 9.6 ms, on an H100."""
    kinds, name = budget.kinds(), "rejection, K = 4"
    names = (name, f"{name}, int8 SLM")
    calls = budget.measured(1, budget.CONTEXT, {each: kinds[each] for each in names})
    plain, int8 = (budget.Budget(each, 1, 5, calls[each]) for each in names)
    assert int8.launches == plain.launches
    products = 4 * (3.44e9 - 0.6e6)  # of four drafts, in bytes
    assert plain.bytes - int8.bytes == pytest.approx(products / 2, rel=0.01)
    assert int8.replayed(budget.Prices()) < 9.6e-3 < plain.replayed(budget.Prices())


def test_times_follow_the_stated_model(budget: ModuleType) -> None:
    from hybridgen.benchmarks import meter

    cost = budget.Call("sample", [meter.Launch("draw", (2, 3))] * 4, meter.Cost(700, 300))
    found = budget.Budget("one", 1, 2, [cost] * 5)
    prices = budget.Prices(bandwidth=1000, share=0.5, launch=0.1, host=(0.2, 1.0))
    assert (found.launches, found.bytes, found.bytes_a_token) == (20, 5000, 2500)
    assert found.floor(prices) == 5
    assert found.replayed(prices) == pytest.approx(12)
    assert found.eager(prices) == pytest.approx((12, 20))
    (call,) = found.as_dict(prices)["ops"]
    assert call["calls"] == 5 and len(call["launches"]) == 4
    assert call["launches"][0]["programs_per_multiprocessor"] == 6 / 132


X = (4, 6)
LAUNCHED: dict[str, tuple[Callable[[torch.Tensor], Any], list[str]]] = {
    "views": (lambda x: x[:, 1:].t().reshape(5, 2, 2).unbind(), []),
    "new memory": (lambda x: x.new_empty(5), []),
    "a reshape that copies": (lambda x: x.t().reshape(24), ["clone"]),
    "in place": (lambda x: x.add_(1).clamp_min_(0), ["add_", "clamp_min_"]),
    "into a result": (lambda x: torch.logical_and(x, x, out=x), ["logical_and"]),
    "a copy": (lambda x: x[0].copy_(x[1]), ["copy_"]),
    "a conversion": (lambda x: x.long(), ["_to_copy"]),
    "sort": (lambda x: x.sort(1), ["sort"] * 3),
    "a scalar that becomes a tensor": (
        lambda x: torch.where(x > 0, x, -1.0),
        ["gt", "scalar_tensor", "where"],
    ),
}


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize("inference", [True, False])
def test_what_torch_launches(budget: ModuleType, name: str, inference: bool) -> None:
    function, expected = LAUNCHED[name]
    with FakeTensorMode(), torch.inference_mode(inference):
        x = torch.empty(X, dtype=torch.float32, device="cuda")
        with budget.Meter(context=0) as meter:
            function(x)
    assert [launch.kernel for call in meter.calls for launch in call.launches] == expected


def test_a_copy_that_a_launcher_makes_counts(budget: ModuleType) -> None:
    from hybridgen.kernels.layers import normalize
    from hybridgen.kernels.sampling import filter_logits

    with FakeTensorMode(), torch.inference_mode():
        logits = torch.empty(6, 4, device="cuda", dtype=torch.float32).t()
        sampling = torch.empty(4, 4, device="cuda", dtype=torch.float64)
        with budget.Meter(context=0) as meter:
            filter_logits(logits, sampling)
            normalize(logits.contiguous(), sampling, 0.0)
    assert [call.op for call in meter.calls] == ["clone", "filter_logits", "clone", "rms_norm"]


def test_bytes_of_torchs_ops(budget: ModuleType) -> None:
    with FakeTensorMode(), torch.inference_mode():
        x = torch.empty(X, dtype=torch.float32, device="cuda")
        y = torch.empty(X, dtype=torch.bfloat16, device="cuda")
        with budget.Meter(context=0) as meter:
            x.copy_(y)
            x + x[:1]
            torch.add(x, x, out=x)
            x.gather(1, x[:, :1].long().expand(4, 3))
    moved = [(call.cost.read, call.cost.written) for call in meter.calls]
    assert moved == [(48, 96), (96 + 24, 96), (2 * 96, 96), (16, 32), (32 + 48, 48)]


def test_the_command_prints_and_writes(
    budget: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "budget.json"
    options = ["--batch", "2", "--context", "64", "--launch", "1", "--launches"]
    assert budget.main([*options, "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    names = list(budget.kinds())
    assert [one["round"] for one in written["rounds"]] == names
    assert written["prices"]["launch"] == 1
    step = written["rounds"][0]
    assert step["rows"] == 2 and step["replayed_seconds"] > step["launches"]
    assert sum(op["calls"] * len(op["launches"]) for op in step["ops"]) == step["launches"]
    printed = capsys.readouterr().out
    assert all(f"\n{name}  " in printed and f"\n{name}, rows: 2\n" in printed for name in names)
    assert "judge[2]" in printed
