"""A decoder's step in one call: the bits of its ops, whoever of the team computes what."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import bits
from tiny_models import random_model, random_tokens
from torch import Tensor

from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.kernels import product_numba, step_numba
from hybridgen.kernels.linear import FEW_ROWS, STEP
from hybridgen.kernels.openmp import parallel
from hybridgen.kernels.step import step

POSITIONS = 96
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1}),
    ("mistral", {"sliding_window": 7}),
    ("qwen3", {"tie_word_embeddings": True}),  # has norms of queries and keys
    ("smollm3", {}),  # has a layer that turns nothing
    ("granite", {"intermediate_size": 208, "num_hidden_layers": 3}),
]
FEEDS = [(1, 1), (1, 5), (3, 1), (4, 16), (64, 1)]  # rows and tokens of each, up to `FEW_ROWS`


def as_kept(kind: str, options: dict[str, Any], kept: torch.dtype) -> Decoder:
    """A float32 decoder with weights of dtype ``kept``."""
    if kept == torch.bfloat16:
        model = random_model(kind, kept, **options)
        decoder = Decoder.from_model(model, dtype=torch.float32)
    else:
        decoder = Decoder.from_model(random_model(kind, **options))
    if kept == torch.int8:
        decoder.quantise()
    arena = Arena([decoder.cache_layout()], FEW_ROWS, POSITIONS, "cpu")
    decoder.bind(arena.caches[0])
    assert decoder._step is not None
    return decoder


def fed(decoder: Decoder, by: Any) -> list[Tensor]:
    """Logits and the cache after each of `FEEDS`, by ``by``, or by ops where it is None."""
    generator = torch.Generator().manual_seed(2)
    decoder._step, found = by, []
    decoder.cache.normal_(generator=torch.Generator().manual_seed(3))
    for rows, count in FEEDS:
        start = torch.randint(-1, POSITIONS - count, (rows,), generator=generator)
        if count > 1:
            start.clamp_min_(0)
        else:
            start[-1] = -1  # counts as 0
        if by is not None:
            for space in by._space:
                space.fill_(torch.nan)
        logits = decoder(random_tokens(rows, count), start)
        assert logits.shape == (rows, count, decoder.vocab_size) and logits.isfinite().all()
        found += [bits(logits.clone()), bits(decoder.cache.clone())]
    return found


def assert_alike(found: list[Tensor], expected: list[Tensor]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        what = ("logits", "cache")[i % 2]
        assert torch.equal(one, other), f"{what} of {FEEDS[i // 2]} rows and tokens"


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("shared", [0, step_numba.SHARED], ids=["by all", "where it pays"])
@pytest.mark.parametrize(("kind", "options"), MODELS)
def test_it_has_the_bits_of_its_ops(
    kind: str,
    options: dict[str, Any],
    shared: int,
    kept: torch.dtype,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_numba, "SHARED", shared)
    monkeypatch.setattr(product_numba, "CLAIMED", 512)  # a small model's products are shared too
    decoder = as_kept(kind, options, kept)
    by, expected = decoder._step, fed(decoder, None)
    assert_alike(fed(decoder, by), expected)


@pytest.mark.parametrize("there", [1, 2, 3, 7])
def test_who_comes_does_all_of_it(there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP may give fewer threads than it is asked for, and a machine may have fewer cores."""
    decoder = as_kept("qwen3", {}, torch.bfloat16)
    by, expected = decoder._step, fed(decoder, None)
    asked: list[int] = []

    def team(function: int, argument: int, threads: int, flags: int) -> None:
        asked.append(threads)
        parallel()(function, argument, there, flags)

    monkeypatch.setattr(step_numba, "SHARED", 0)
    monkeypatch.setattr(step_numba, "parallel", lambda: team)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert_alike(fed(decoder, by), expected)
    assert asked == [7] * len(FEEDS)


def test_it_reads_its_tensors_whatever_their_strides() -> None:
    decoder = as_kept("qwen3", {}, torch.float32)
    tokens, start = random_tokens(3, 4), torch.tensor([0, 30, 9])
    expected = decoder(tokens, start)

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack((tensor, torch.full_like(tensor, 5)), -1)[..., 0]

    given = [strided(each) for each in (tokens, start)]
    assert not any(each.is_contiguous() for each in given)
    assert torch.equal(decoder._step(*given, decoder._layer_caches), expected)


@pytest.mark.parametrize(("token", "place"), [(-1, 0), (96, 0), (2**40, 0), (5, 2**40), (5, None)])
def test_what_its_tables_have_not_is_refused_and_the_next_step_is_right(
    token: int, place: int | None, threads: int
) -> None:
    decoder = as_kept("llama", {}, torch.bfloat16)
    tokens, start = random_tokens(2, 1), torch.tensor([3, 7])
    expected, kept = decoder(tokens, start), decoder.cache.clone()
    wrong = torch.tensor([[1], [token]])
    place = decoder.cache.shape[4] if place is None else place
    assert decoder.vocab_size == 96
    with pytest.raises(IndexError, match="beyond the tables"):
        decoder._step(wrong, torch.tensor([3, place]), decoder._layer_caches)
    assert torch.equal(decoder.cache, kept)
    assert torch.equal(decoder(tokens, start), expected)


def test_a_logit_is_not_written_to_again() -> None:
    """A caller may keep the logits of one step through the next."""
    decoder = as_kept("llama", {}, torch.float32)
    first = decoder(random_tokens(2, 2), torch.tensor([0, 0]))
    kept = first.clone()
    decoder(random_tokens(2, 2, seed=9), torch.tensor([2, 2]))
    assert torch.equal(first, kept)


def other(decoder: Decoder) -> None:
    layer = decoder.weights.layers[1]
    decoder.weights.layers[1] = type(layer)(
        **{**vars(layer), "down": layer.down._replace(weight=layer.down.weight.bfloat16())}
    )


def narrow(decoder: Decoder) -> None:
    head = decoder.weights.head
    width = head.weight.shape[1] // STEP * STEP - 1
    object.__setattr__(decoder.weights, "head", head._replace(weight=head.weight[:, :width]))


def strided(decoder: Decoder) -> None:
    table = decoder.weights.embedding
    apart = torch.stack((table, table), 1)[:, 0]
    object.__setattr__(decoder.weights, "embedding", apart)


forms = ["of two dtypes", "of an odd depth", "an embedding with gaps"]


@pytest.mark.parametrize("change", [other, narrow, strided], ids=forms)
def test_weights_of_other_forms_are_left_to_ops(change: Callable[[Decoder], None]) -> None:
    decoder = Decoder.from_model(random_model("llama"))
    change(decoder)
    rope = torch.zeros(2, POSITIONS, 1, decoder.head_dim)
    assert step(decoder.weights, rope, 1e-6, decoder.head_dim, decoder.group) is None


def test_two_generators_step_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread of Python has a team of its own."""
    monkeypatch.setattr(step_numba, "SHARED", 0)
    decoders = [as_kept("qwen3", {}, torch.bfloat16) for _ in range(2)]
    expected = fed(decoders[0], None)
    results: list[list[Tensor]] = [[], []]
    steps = [decoder._step for decoder in decoders]

    def work(i: int) -> None:
        results[i] = fed(decoders[i], steps[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results:
        assert_alike(found, expected)


@pytest.mark.parametrize(("kind", "options"), MODELS)
def test_a_short_prompt_is_read_as_steps_are(
    kind: str, options: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys and values have the bits of ops', and nothing else of the cache is written."""
    monkeypatch.setattr(step_numba, "SHARED", 0)
    decoder = as_kept(kind, options, torch.bfloat16)
    tokens, rows = random_tokens(4, 70), [5, 2, 0, 9]
    starts, ends = [0, 0, 3, 60], [40, 40, 64, 61]
    decoder.cache.normal_(generator=torch.Generator().manual_seed(4))
    expected, by = decoder.cache.clone(), decoder._step
    decoder._step = None
    for i, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        layers = expected[:, :, :, row : row + 1].unbind()
        decoder._logits(tokens[i : i + 1, start:end], torch.tensor([start]), layers)
    decoder._step = by
    decoder.prefill(tokens, ends, rows, starts)
    assert torch.equal(bits(decoder.cache), bits(expected))
