"""The products' kernel against float64, and row by row the same bits."""

import itertools
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import bits, launch
from torch import Tensor

from hybridgen.kernels import linear_triton
from hybridgen.kernels.linear import linear_residual, norm_gated_linear, norm_linear
from hybridgen.kernels.quantise import quantise
from hybridgen.kernels.registry import Op

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = {"norm": norm_linear, "gated": norm_gated_linear, "residual": linear_residual}
# Half a unit in the last place, relative: what one rounding to the dtype costs at most.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """The interpreter cuts to bfloat16 where a GPU rounds: that costs a whole unit."""
    return ROUNDING[dtype] * (2 if dtype == torch.bfloat16 and device.type == "cpu" else 1)


def surrounded(values: Tensor, before: int = 0, after: int = 0) -> Tensor:
    """``values`` with each row between as many NaN, so that a read beside it would show; int8
    between 127."""
    beside = torch.nan if values.is_floating_point() else 127
    wide = torch.full((*values.shape[:-1], before + values.shape[-1] + after), beside)
    view = wide.to(values.dtype)[..., before : before + values.shape[-1]]
    return view.copy_(values)


@dataclass
class Case:
    """Arguments of one product, of ``rows`` rows, ``columns`` outputs and ``depth`` inputs."""

    op: str
    dtype: torch.dtype
    rows: int
    columns: int
    depth: int
    bias: bool = False
    eps: float = 1e-5
    scale: float = 1.0
    apart: tuple[int, int] = (0, 0)  # NaN before and after each row of x and of the residual
    seed: int = 0
    int8: bool = False

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        outputs = self.columns * (2 if self.op == "gated" else 1)
        self.x = surrounded(random(self.rows, self.depth) * self.scale, *self.apart)
        self.norm = random(self.depth)
        weight = random(outputs * self.depth) / self.depth**0.5
        self.of_output = None
        if self.int8:
            q, of_output = quantise(weight.view(outputs, self.depth))
            weight, self.of_output = q.view(-1), surrounded(of_output, 16, 80)
        self.weight = surrounded(weight, 16, 80).view(outputs, self.depth)
        self.offset = surrounded(random(outputs), 16, 80) if self.bias else None
        self.residual = surrounded(random(self.rows, self.columns), *self.apart)

    def arguments(self, rows: Tensor | slice = slice(None)) -> tuple[Any, ...]:
        x = self.x[rows]
        if self.op == "residual":
            return x, self.weight, self.offset, self.residual[rows], self.of_output
        return x, self.norm, self.eps, self.weight, self.offset, self.of_output

    def weight64(self) -> Tensor:
        """What the weight stands for."""
        weight = self.weight.double()
        return weight if self.of_output is None else weight * self.of_output.double().unsqueeze(1)

    def run(self, device: torch.device, rows: Tensor | slice = slice(None)) -> Tensor:
        result: Tensor = launch(OPS[self.op], device, *self.arguments(rows))
        return result


def linear64(case: Case, unit: float) -> tuple[Tensor, Tensor]:
    """The product and bias in float64, and how far off a right kernel may be before it rounds.

    A float32 sum of n terms in any order is off by n roundings of the sum of their magnitudes at
    most, twice that where tensor cores cut instead of rounding; the sum of squares likewise, and
    rsqrt by two more. The normed row is rounded, by ``unit``, before the product: once, or twice in
    float16, where each term may also be cut off at the least subnormal, 2**-24. A scale costs one
    rounding.
    """
    weight, x, relative = case.weight64(), case.x.double(), (2 * case.depth + 9) * 2.0**-23
    cut = 0.0
    if case.op != "residual":
        x = x / (x.square().mean(-1, keepdim=True) + case.eps).sqrt() * case.norm.double()
        relative += unit * (2 if case.dtype == torch.float16 else 1)
        cut = 2.0**-24 if case.dtype == torch.float16 else 0.0
    y = F.linear(x, weight)
    bound = relative * F.linear(x.abs(), weight.abs()) + cut * weight.abs().sum(1)
    if case.offset is not None:
        offset = case.offset.double()
        y, bound = y + offset, bound + 2.0**-23 * (offset.abs() + (y + offset).abs())
    return y, bound


def truth(case: Case, unit: float) -> tuple[Tensor, Tensor]:
    """The op's result in float64, and how far off a right kernel may be."""
    y, bound = linear64(case, unit)
    if case.op == "residual":
        y = y + case.residual.double()
        bound = bound + 2.0**-23 * y.abs()
    elif case.op == "gated":
        (gate, up), (gate_bound, up_bound) = y.chunk(2, -1), bound.chunk(2, -1)
        silu = F.silu(gate)
        # |silu'| < 1.1. The exponential's argument is rounded: relative, by |gate| roundings.
        silu_bound = 1.1 * gate_bound + (gate.abs() + 4) * 2.0**-22 * silu.abs()
        y, bound = silu * up, silu_bound * (up.abs() + up_bound) + silu.abs() * up_bound
    least = torch.finfo(case.dtype).smallest_normal * unit
    return y, bound * (1 + unit) + unit * y.abs() + least


def check(case: Case, device: torch.device) -> None:
    result = case.run(device)
    expected, bound = truth(case, rounding(case.dtype, device))
    assert result.dtype == case.dtype and result.shape == expected.shape
    assert result.is_contiguous()
    assert ((result.double() - expected).abs() <= bound).all()


cases = st.builds(
    Case,
    op=st.sampled_from(list(OPS)),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 20),
    columns=st.integers(1, 70),
    depth=st.one_of(st.integers(1, 300), st.sampled_from([16, 64, 128, 256, 512])),
    bias=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-2]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    apart=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    seed=st.integers(0, 100),
    int8=st.booleans(),
)


@given(case=cases, fewest=st.sampled_from([1, 2, 96]))
@settings(max_examples=150)
def test_the_formula(device: torch.device, case: Case, fewest: int) -> None:
    """Any shape, rows of any stride, beside NaN everywhere, in tiles of any size."""
    with patch.object(linear_triton, "FEWEST_PROGRAMS", fewest):
        check(case, device)


@pytest.mark.parametrize(("op", "int8"), [("norm", False), ("residual", False), ("residual", True)])
@pytest.mark.parametrize("columns", [16 * 95, 32 * 95 + 1])
def test_each_tile_at_the_widths_that_choose_it(
    device: torch.device, op: str, columns: int, int8: bool
) -> None:
    check(Case(op, torch.bfloat16, 2, columns, 40, int8=int8), device)


def test_tiles_keep_every_multiprocessor_busy() -> None:
    """The programs of the shapes in the docstring, and of the rest of those models."""

    def programs(columns: int, gated: bool = False) -> int:
        return -(-columns // linear_triton.tile(columns, gated, torch.bfloat16).outputs)

    assert [programs(n) for n in (2048, 4096, 6144, 151936)] == [128, 128, 192, 4748]
    assert [programs(n) for n in (1152, 3072, 3584, 4608)] == [72, 96, 112, 144]
    assert [programs(n, gated=True) for n in (4864, 6144, 12288)] == [304, 384, 768]


def test_tiles_fit_into_the_shared_memory_of_every_card() -> None:
    """99 KB; where a card has 227, one program for each multiprocessor takes more than half.

    An epilogue needs less than the tiles did, whose memory it takes over.
    """
    for gated, columns, rows, int8, alone in itertools.product(
        (False, True), (2048, 4096, 151936), (1, 32), (False, True), (0, 132)
    ):
        block = linear_triton.tile(columns, gated, torch.bfloat16, rows, int8=int8, alone=alone)
        weights = linear_triton.WARPS * block.depth * block.outputs * (2 if gated else 1)
        weights *= 1 if int8 else 2
        x = 2 * linear_triton.WARPS * block.depth * block.rows
        taken = (block.stages - 1) * (weights + x)
        if rows <= 16 and -(-columns // block.outputs) <= alone:
            assert 227 * 1024 // 2 < taken <= 163 * 1024
        else:
            assert taken <= 99 * 1024
        assert (block.stages - 1) * weights >= (16 if rows > 16 else 32) * 1024


# --- int8 weights ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["norm", "residual"])
def test_every_int8_number_is_taken_as_it_is(
    device: torch.device, op: str, dtype: torch.dtype
) -> None:
    """Rows of x with a single 1, of a depth with every number: each product is one of them."""
    x = torch.eye(256, dtype=dtype)
    weight = (torch.arange(256).unsqueeze(0) + 7 * torch.arange(40).unsqueeze(1)) % 256 - 128
    scale, expected = torch.full((40,), 0.5), 0.5 * weight.T
    if op == "norm":  # of a 1 among 256 the mean is 1 / 256: normalised, it is 16
        ones = torch.ones(256, dtype=dtype)
        result = launch(norm_linear, device, x, ones, 0.0, weight.to(torch.int8), None, scale / 16)
    else:
        nothing = torch.zeros(256, 40, dtype=dtype)
        result = launch(linear_residual, device, x, weight.to(torch.int8), None, nothing, scale)
    assert torch.equal(result.float(), expected)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("depth", [96, 1024])
def test_scales_far_apart(device: torch.device, op: str, dtype: torch.dtype, depth: int) -> None:
    """Neighbouring outputs of 2^10 and 2^-20: each has its own."""
    case = Case(op, dtype, 5, 33, depth, bias=True, int8=True)
    assert case.of_output is not None
    case.of_output[::2] *= 2.0**10
    case.of_output[1::2] *= 2.0**-20
    check(case, device)


# --- a row's bits ---


def cancelling(op: str, dtype: torch.dtype, rows: int = 33, int8: bool = False) -> Case:
    """Products (of a gate alone) whose second half is minus the first: what they add up to is the
    rounding of the float32 sums, so that another order of summing shows in half precision too."""
    half = 128 if int8 else 72  # int8 in whole tiles
    case = Case(op, dtype, rows, columns=20, depth=2 * half, int8=int8)
    second = torch.arange(half)
    if int8:
        second = second.flip(0)  # else two quarters of a tile would be each other's opposite
        case.x *= 2.0 ** (torch.arange(2 * half) % 10)  # else sums of so short numbers are exact
    case.x[:, half:] = -case.x[:, second]
    case.norm[half:] = case.norm[second]
    case.weight[:20, half:] = case.weight[:20, second]
    case.residual.zero_()
    return case


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("fewest", [1, 96])
def test_rows_do_not_depend_on_their_number(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    fewest: int,
    op: str,
    dtype: torch.dtype,
    int8: bool,
) -> None:
    """In tiles of 16 outputs and of 32."""
    monkeypatch.setattr(linear_triton, "FEWEST_PROGRAMS", fewest)
    case = cancelling(op, dtype, int8=int8)
    together = bits(case.run(device))
    assert together.any(0).all()  # they do round
    for rows in range(1, case.rows):
        assert torch.equal(bits(case.run(device, slice(rows))), together[:rows])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_rows_do_not_depend_on_their_place(
    device: torch.device, op: str, dtype: torch.dtype, int8: bool
) -> None:
    """Trap 19: row i is unchanged under permutation of the batch."""
    case = cancelling(op, dtype, int8=int8)
    together = bits(case.run(device))
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(bits(case.run(device, order)), together[order])
    for row in (1, 15, 16, 32):
        assert torch.equal(bits(case.run(device, slice(row, row + 1))), together[row : row + 1])


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, in the interpreter
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_broken_rows_stay_alone(
    device: torch.device, op: str, dtype: torch.dtype, value: float, int8: bool
) -> None:
    """Trap 27: NaN in a row must not reach the others of its tile."""
    case = cancelling(op, dtype, rows=18, int8=int8)
    together = bits(case.run(device))
    broken = torch.tensor([0, 3, 17])
    case.x[broken] = value
    result = case.run(device)
    sound = torch.ones(case.rows, dtype=torch.bool).index_fill(0, broken, False)
    assert torch.equal(bits(result)[sound], together[sound])
    assert not result[broken].isfinite().any()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_a_second_run_has_the_same_bits(device: torch.device, op: str, int8: bool) -> None:
    """Trap 18: sums in the order of arrival differ from run to run."""
    case = Case(op, torch.bfloat16, 5, columns=100, depth=600, int8=int8)
    assert torch.equal(bits(case.run(device)), bits(case.run(device)))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_rows_do_not_depend_on_their_stride(device: torch.device, op: str, int8: bool) -> None:
    """Trap 22: rows further apart than they are long."""
    packed, apart = (Case(op, torch.bfloat16, 5, 20, 64, apart=(n, n), int8=int8) for n in (0, 32))
    assert torch.equal(bits(packed.run(device)), bits(apart.run(device)))


# --- extreme numbers ---


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["norm", "gated"])
def test_large_activations_do_not_overflow_before_they_are_scaled(
    device: torch.device, op: str, dtype: torch.dtype, int8: bool
) -> None:
    case = Case(op, dtype, 3, 20, 70, scale=10_000.0, int8=int8)
    case.norm.mul_(16)
    assert (case.x.float() * case.norm.float()).abs().max() > torch.finfo(torch.float16).max
    check(case, device)


@pytest.mark.parametrize("op", ["norm", "gated"])
def test_a_row_of_zeros_is_its_bias(device: torch.device, op: str) -> None:
    case = Case(op, torch.float32, 3, 20, 70, bias=True)
    case.x[1] = 0
    assert case.offset is not None
    gate, up = case.offset[:20], case.offset[-20:]
    expected = F.silu(gate) * up if op == "gated" else gate
    torch.testing.assert_close(case.run(device)[1], expected, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter
@pytest.mark.parametrize("gate", [-200.0, 200.0])
def test_a_gate_may_be_shut_or_wide_open(device: torch.device, gate: float) -> None:
    """exp(200) is infinite in float32."""
    case = Case("gated", torch.float32, 2, 4, 16, bias=True)
    assert case.offset is not None
    case.offset[:4] = gate
    result = case.run(device)
    if gate < 0:
        assert not result.any()
    else:
        check(case, device)


@pytest.mark.parametrize("op", OPS)
def test_rows_two_gigabytes_apart(device: torch.device, op: str) -> None:
    """Places beyond 2**31 elements; on a CPU only the pages touched take memory."""
    case = Case(op, torch.bfloat16, 9, 20, 64)
    expected = bits(case.run(device))
    far = torch.empty((8 << 28) + 64, dtype=torch.bfloat16, device=device)
    rows = far.as_strided((9, 64), (1 << 28, 1))
    rows.copy_(case.x)
    rest = [a.to(device) if isinstance(a, Tensor) else a for a in case.arguments()[1:]]
    launcher: Any = OPS[op].launcher()
    assert torch.equal(bits(launcher(rows, *rest).cpu()), expected)


def test_launchers_are_those_of_the_ops() -> None:
    for op in OPS.values():
        assert isinstance(op, Op)
        assert op.launcher() is getattr(linear_triton, op.name)
