"""Noise is a function of (seed, position, token, stream), the same everywhere, and uniform."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_oracle import ACCEPTABLE, p_value

from hybridgen.kernels import philox
from hybridgen.kernels.philox import exponential, gumbel, philox4x32, random_bits, uniform

# Random123's kat_vectors, philox4x32 10: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """The ten rounds as the paper prints them, in Python integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ k, y & 0xFFFFFFFF, (x >> 32) ^ d ^ m, x & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def random_arguments(count: int) -> tuple[np.ndarray, ...]:
    """Seeds of 64 bits and positions and tokens of 32, the extremes among them."""
    random = np.random.default_rng(0)
    seed = random.integers(-(2**63), 2**63, count)
    position, token = random.integers(0, 2**32, (2, count))
    seed[:4], position[:4], token[:4] = [0, -1, 2**63 - 1, -(2**63)], [0, 1, 2, 3], [0, 0, 1, 1]
    return seed, position, token, random.integers(0, 4, count)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    c, k = np.array(words(counter), np.uint64), np.array(words(key), np.uint64)
    even, odd = c[[0, 2], None].copy(), c[[1, 3], None].copy()
    philox4x32(even, odd, k[:, None].copy())
    assert [int(w) for w in (even[0, 0], odd[0, 0], even[1, 0], odd[1, 0])] == words(result)
    assert plain_philox(words(counter), words(key)) == words(result)


def test_counter_is_token_position_stream_and_key_is_the_seed() -> None:
    seed, position, token, stream = random_arguments(50)
    for i, bits in enumerate(random_bits(seed, position, token, stream)):
        low, high = int(seed[i]) & 0xFFFFFFFF, int(seed[i]) >> 32 & 0xFFFFFFFF
        out = plain_philox([int(token[i]), int(position[i]), int(stream[i]), 0], [low, high])
        assert int(bits) == out[0] | out[1] << 32


TRITON_PROGRAM = """
import sys

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(seed, position, token, stream, out, n: tl.constexpr):
    i = tl.arange(0, n)
    word_0, word_1, word_2, word_3 = tl.philox(
        tl.load(seed + i),
        tl.load(token + i).to(tl.uint32),
        tl.load(position + i).to(tl.uint32),
        tl.load(stream + i).to(tl.uint32),
        tl.zeros((n,), tl.uint32),
    )
    tl.store(out + 4 * i, word_0.to(tl.int64))
    tl.store(out + 4 * i + 1, word_1.to(tl.int64))
    tl.store(out + 4 * i + 2, word_2.to(tl.int64))
    tl.store(out + 4 * i + 3, word_3.to(tl.int64))


arguments = [torch.from_numpy(a) for a in np.load(sys.argv[1])]
out = torch.full((len(arguments[0]), 4), -1)
kernel[(1,)](*arguments, out, len(arguments[0]))
np.save(sys.argv[2], out.numpy())
"""


def test_equals_triton(tmp_path: Path) -> None:
    """Triton's interpreter, in its own process: it is chosen when Triton is imported."""
    arguments = np.stack(random_arguments(64)).astype(np.int64)
    program, given, result = tmp_path / "program.py", tmp_path / "in.npy", tmp_path / "out.npy"
    program.write_text(TRITON_PROGRAM)
    np.save(given, arguments)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, program, given, result], env=environment, check=True)
    out = np.load(result).astype(np.uint64)
    expected = out[:, 0] | out[:, 1] << np.uint64(32)
    np.testing.assert_array_equal(random_bits(*arguments), expected)


def test_any_shape_any_order_any_batch() -> None:
    """An element's draw depends on its own four values: not on its place or its neighbours."""
    seed, position, token, stream = random_arguments(40)
    all_at_once = random_bits(seed, position, token, stream)
    one_by_one = [random_bits(*(a[i : i + 1] for a in random_arguments(40)))[0] for i in range(40)]
    np.testing.assert_array_equal(all_at_once, one_by_one)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(
        random_bits(seed[order], position[order], token[order], stream[order]), all_at_once[order]
    )
    table = random_bits(seed[:, None], position[:, None], np.arange(7), philox.DRAFT)
    assert table.shape == (40, 7)
    np.testing.assert_array_equal(table[:, 3], random_bits(seed, position, 3, philox.DRAFT))


@pytest.mark.parametrize("count", [philox._BLOCK - 1, philox._BLOCK, 2 * philox._BLOCK + 3])
def test_long_arrays_go_in_pieces(count: int) -> None:
    seed, position, token = np.arange(count) % 5, np.arange(count) % 3, np.arange(count)
    whole = random_bits(seed, position, token, philox.TARGET)
    spot = np.r_[0:3, count // 2, count - 3 : count]
    np.testing.assert_array_equal(
        whole[spot], random_bits(seed[spot], position[spot], token[spot], philox.TARGET)
    )


def test_arguments_are_not_written() -> None:
    arguments = random_arguments(20)
    uniform(*arguments)
    for before, after in zip(random_arguments(20), arguments, strict=True):
        np.testing.assert_array_equal(before, after)


def test_trap_20_every_argument_changes_the_draw() -> None:
    """A frozen counter would repeat its numbers; streams that overlap would bias verification."""
    grid = np.meshgrid(range(8), range(8), range(8), range(4), indexing="ij")
    bits = random_bits(*(axis.ravel() for axis in grid))
    assert len(np.unique(bits)) == bits.size
    high = np.array([1, 1 << 32, 1 << 63], np.uint64).view(np.int64)
    assert len(np.unique(random_bits(high, 0, 0, 0))) == 3  # both halves of the seed count


def test_uniform_is_uniform() -> None:
    """Each stream, and the three ways to walk: along tokens, positions and seeds."""
    walk = np.arange(100_000)
    for stream in range(4):
        for seed, position, token in ((walk, 5, 9), (walk[:1], walk, 9), (walk[:1], 5, walk)):
            u = uniform(seed, position, token, stream)
            counts = np.histogram(u, bins=64, range=(0, 1))[0]
            assert p_value(counts, np.full(64, 1 / 64)) > ACCEPTABLE


def test_streams_are_independent() -> None:
    """Pairs of streams fill the unit square evenly."""
    seed = np.arange(100_000)
    u = [uniform(seed, 3, 0, stream) for stream in range(4)]
    for a in range(4):
        for b in range(a):
            counts = np.histogram2d(u[a], u[b], bins=8, range=[[0, 1], [0, 1]])[0]
            assert p_value(counts, np.full(64, 1 / 64)) > ACCEPTABLE


def test_gumbel_and_exponential_have_their_laws() -> None:
    """Their distribution functions turn them back into the uniform they came from."""
    seed = np.arange(100_000)
    u = uniform(seed, 0, 0, 0)
    # log1p's argument is rounded to float32, 2**-24 at most, as are the results near 1.
    np.testing.assert_allclose(-np.expm1(-exponential(seed, 0, 0, 0)), u, atol=2**-22)
    np.testing.assert_allclose(-np.expm1(-np.exp(-gumbel(seed, 0, 0, 0))), u, atol=2**-20)


@pytest.mark.parametrize(
    ("bits", "u"),
    [(0, 2.0**-64), (1, 2.0**-64), (3, 3 * 2.0**-64), (2**64 - 1, 1 - 2.0**-24)],
)
def test_traps_9_and_11_the_ends_are_finite_and_fine(
    bits: int, u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """u is never 0 nor 1, so no noise is infinite; small u, large noise, has 64-bit resolution."""
    monkeypatch.setattr(philox, "random_bits", lambda *_: np.array([bits], np.uint64))
    assert uniform(0, 0, 0, 0) == np.float32(u)
    assert 0 < exponential(0, 0, 0, 0)[0] < 16.7
    # -log(-log(1 - u)) in float64; 4 ulp of float32, numpy's own bound for log and log1p.
    exact = -np.log(-np.log1p(-u))
    np.testing.assert_allclose(gumbel(0, 0, 0, 0), exact, rtol=4 * 2**-23)


def test_dtypes() -> None:
    seed = torch.arange(3).numpy()
    assert random_bits(seed, 0, 0, 0).dtype == np.uint64
    assert {f(seed, 0, 0, 0).dtype for f in (uniform, exponential, gumbel)} == {np.dtype("f4")}
