"""What is kept of a prompt: what transformers would keep, whatever the prompt is read with."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from fake_graph import FakeGraphs
from test_decoder import FAMILIES, SLIDING, WIDE, Allocations, close
from tiny_models import at, bound, random_model, random_tokens, reference_logits
from torch import Tensor

from hybridgen.engine import prefill
from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.prefill import CPU, Block, Piece, plan
from hybridgen.kernels import linear

CLASSES = {
    "all equal": [(16, 32, 64, 128, 256)],
    "small and large": [(16, 32), (64, 128, 256)],
    "larger than a run": [(16, 32), (64, 128, 256, 512)],
    "each its own": [(16,), (32,), (64,), (128,), (256,)],
    "one small": [(32,)],
    "none": [],
}
LENGTHS = [140, 20, 3, 256, 1, 700, 0, 31, 130]


@pytest.fixture(params=CLASSES)
def classes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As if the products of this CPU had such classes."""
    found = CLASSES[request.param]
    monkeypatch.setattr(prefill, "size_classes", lambda products, sizes, dtype: found)
    return str(request.param)


def read(decoder: Decoder, prompts: list[Tensor], rows: list[int] | None = None) -> None:
    """Prefill prompts [T] of any lengths."""
    longest = max(map(len, prompts))
    padded = torch.stack([torch.nn.functional.pad(p, (0, longest - len(p))) for p in prompts])
    decoder.prefill(padded, [len(p) for p in prompts], rows)


def kept(decoder: Decoder, row: int, length: int) -> Tensor:
    return decoder.cache[:, :, :, row, :length].clone()


def wide(
    dtype: torch.dtype, packed: bool, rows: int, computed: torch.dtype | None = None
) -> Decoder:
    """A decoder of two layers with a cache of NaN, at whose widths libraries switch kernels.

    computed   other than ``dtype``: prompts are read in that, all else is computed in this
    """
    decoder = Decoder.from_model(random_model("qwen3", dtype, **WIDE), dtype=computed)
    if packed:
        decoder.pack()
    if computed:
        decoder.read_prompts_in(dtype)
    arena = Arena([decoder.cache_layout()], rows, 768, "cpu")
    decoder.bind(arena.caches[0].fill_(torch.nan))
    return decoder


# --- the plan ---


@pytest.mark.parametrize("starts", [[0] * len(LENGTHS), [0, 20, 1, 130, 0, 333, 0, 5, 129]])
@pytest.mark.parametrize("name", CLASSES)
def test_every_token_is_read_once_and_after_those_before_it(name: str, starts: list[int]) -> None:
    rows = list(range(10, 10 + len(LENGTHS)))
    read_so_far = dict(enumerate(starts))
    for block in plan(LENGTHS, rows, starts, CLASSES[name], 256, 128):
        assert sum(piece.length for piece in block.pieces) <= block.size
        for piece in block.pieces:
            assert piece.row == rows[piece.prompt] and piece.first == read_so_far[piece.prompt]
            cut = piece.first - starts[piece.prompt]
            assert piece.length <= 128 and cut % 128 in (0, 32, 64, 96)
            read_so_far[piece.prompt] = piece.end
    assert list(read_so_far.values()) == LENGTHS


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("length", [1, 16, 17, 33, 100, 129, 256, 257, 513, 700])
def test_a_prompts_pieces_and_classes_depend_on_it_alone(name: str, length: int) -> None:
    start = length // 3

    def of_prompt(index: int, blocks: list[Block]) -> list[tuple[int, int, Any]]:
        classes = {size: sizes for sizes in CLASSES[name] for size in sizes}
        return [
            (piece.first, piece.end, classes.get(block.size))
            for block in blocks
            for piece in block.pieces
            if piece.prompt == index
        ]

    alone = of_prompt(0, plan([length], [0], [start], CLASSES[name], 256, 128))
    lengths = [*LENGTHS[:4], length, *LENGTHS[4:]]
    starts = [start if i == 4 else each // 2 for i, each in enumerate(lengths)]
    blocks = plan(lengths, range(len(lengths)), starts, CLASSES[name], 256, 128)
    assert of_prompt(4, blocks) == alone


def test_short_prompts_share_a_block_as_small_as_they_allow() -> None:
    pieces = [Piece(0, 5, 0, 20), Piece(1, 6, 0, 30), Piece(2, 7, 0, 40)]
    equal = CLASSES["all equal"]
    assert plan([20, 30, 40], [5, 6, 7], [0] * 3, equal, 256, 128) == [Block(128, pieces)]
    assert plan([100] * 5, range(5), [0] * 5, equal, 256, 128)[-1].size == 128
    assert [b.size for b in plan([500] * 4, range(4), [0] * 4, equal, 256, 128)] == [256] * 8


def test_a_block_larger_than_a_run_has_little_padding() -> None:
    classes = CLASSES["larger than a run"]
    assert [b.size for b in plan([500] * 4, range(4), [0] * 4, classes, 256, 128)] == [512] * 4
    assert [b.size for b in plan([300], [0], [0], classes, 256, 128)] == [256, 64]
    assert [b.size for b in plan([400], [0], [0], classes, 256, 128)] == [512]


# --- the same function as transformers ---


@pytest.mark.parametrize(("kind", "options"), FAMILIES + SLIDING)
def test_decoding_goes_on_from_prompts_that_were_read_together(
    kind: str, options: dict[str, Any]
) -> None:
    check_decoding(random_model(kind, **options), packed=False)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_decoding_goes_on_whatever_blocks_there_are(classes: str, packed: bool) -> None:
    check_decoding(random_model("qwen3"), packed)


def check_decoding(model: Any, packed: bool) -> None:
    tokens = random_tokens(4, 300)
    decoder = bound(model, rows=4, positions=512)
    if packed:
        decoder.pack()
    lengths = [290, 1, 30, 200]
    decoder.prefill(tokens, torch.tensor(lengths))
    fed = torch.stack([row[n : n + 2] for row, n in zip(tokens, lengths, strict=True)])
    logits = decoder(fed, at(*lengths))
    for row, length in enumerate(lengths):
        expected = reference_logits(model, tokens[row : row + 1, : length + 2])
        assert close(logits[row], expected[0, -2:])


@pytest.mark.parametrize(("kind", "options"), FAMILIES[:2] + SLIDING)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_prompt_goes_on_where_its_row_has_been_read(
    kind: str, options: dict[str, Any], packed: bool
) -> None:
    """After a prompt, after tokens that were decoded, and over those of another text."""
    model = random_model(kind, **options)
    decoder, tokens = bound(model, rows=3, positions=512), random_tokens(3, 300)
    if packed:
        decoder.pack()
    starts, lengths = [37, 0, 150], [290, 200, 151]
    decoder.prefill(random_tokens(3, 300, seed=8), [300] * 3)
    decoder.prefill(tokens, [33, 0, 148])
    decoded = torch.stack([tokens[0, 33:37], tokens[1, :4], tokens[2, 148:152]])
    decoder(decoded, at(33, 300, 148))
    rest = tokens.clone()
    rest[0, :37] = rest[2, :150] = 0  # it is not read
    decoder.prefill(rest, lengths, starts=starts)
    fed = torch.stack([row[n : n + 2] for row, n in zip(tokens, lengths, strict=True)])
    logits = decoder(fed, at(*lengths))
    for row, length in enumerate(lengths):
        expected = reference_logits(model, tokens[row : row + 1, : length + 2])
        assert close(logits[row], expected[0, -2:])


def test_bfloat16_is_as_near_to_the_truth_as_transformers() -> None:
    truth_model = random_model("qwen3", hidden_size=64, intermediate_size=192)
    model = copy.deepcopy(truth_model).to(torch.bfloat16)
    # The truth has the rounded weights, so that what remains is rounding on the way.
    truth_model.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    tokens = random_tokens(16, 201)
    truth = reference_logits(truth_model, tokens)[:, -1]
    theirs = (reference_logits(model, tokens)[:, -1].float() - truth).square().mean().sqrt()
    decoder = bound(model, rows=16)
    decoder.prefill(tokens, [200] * 16)
    ours = decoder(tokens[:, 200:], at(*[200] * 16))[:, -1].float()
    # 1.1 leaves room for luck over 16 rows of logits.
    assert (ours - truth).square().mean().sqrt() < 1.1 * theirs


# --- bits ---


@pytest.mark.parametrize(
    "dtype, packed, computed",
    [
        (torch.float32, False, None),
        (torch.float32, True, None),
        (torch.bfloat16, False, None),
        (torch.bfloat16, True, None),
        pytest.param(
            torch.bfloat16,
            False,
            torch.float32,
            marks=pytest.mark.skipif(
                not linear.reads_plain(torch.float32), reason="no compiled products"
            ),
        ),
    ],
    ids=["float32", "float32 packed", "bfloat16", "bfloat16 packed", "bfloat16 in float32"],
)
def test_a_prompt_has_its_bits_whatever_it_is_read_with(
    dtype: torch.dtype, packed: bool, computed: torch.dtype | None, threads: int
) -> None:
    """Alone, with others, in any order, into any row, over whatever stood there."""
    # Threads that share cores with other work wait long for each other: fewer prompts for two.
    lengths = (1, 15, 33, 100, 140, 256, 300, 513)[:: 1 if threads == 1 else 3]
    prompts = [random_tokens(1, n, seed=n)[0] for n in lengths]
    decoder = wide(dtype, packed, 9, computed)
    alone = []
    for prompt in prompts:
        read(decoder, [prompt])
        alone.append(kept(decoder, 0, len(prompt)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3 if threads == 1 else 1):
        order = torch.randperm(len(prompts), generator=generator).tolist()
        rows = torch.randperm(9, generator=generator)[: len(prompts)].tolist()
        read(decoder, [prompts[i] for i in order], rows)
        for i, row in zip(order, rows, strict=True):
            assert torch.equal(kept(decoder, row, len(prompts[i])), alone[i]), (i, row)


def test_a_prompt_that_goes_on_has_its_bits_whatever_it_is_read_with() -> None:
    decoder = wide(torch.bfloat16, True, rows=4)
    prompts = [random_tokens(1, n, seed=n)[0] for n in (300, 140, 33)]
    starts = [40, 130, 1]

    def begin(rows: list[int]) -> None:
        for prompt, start, row in zip(prompts, starts, rows, strict=True):
            decoder.prefill(prompt.unsqueeze(0), [start], [row])

    begin([0, 1, 2])
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        decoder.prefill(prompt.unsqueeze(0), [len(prompt)], [row], [start])
    alone = [kept(decoder, row, len(prompt)) for row, prompt in enumerate(prompts)]
    decoder.cache.fill_(torch.nan)
    begin([3, 0, 1])
    padded = torch.stack([torch.nn.functional.pad(p, (0, 300 - len(p))) for p in prompts])
    decoder.prefill(padded, [300, 140, 33], [3, 0, 1], starts)
    for row, prompt, before in zip([3, 0, 1], prompts, alone, strict=True):
        assert torch.equal(kept(decoder, row, len(prompt)), before)


def test_rows_that_depend_on_their_place_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of such a library would differ: every piece has a block of its own size."""
    monkeypatch.setattr(prefill, "size_classes", lambda products, sizes, dtype: [])
    sizes = []
    plain = prefill.product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, scale: None) -> Tensor:
        sizes.append(len(x))
        result = plain(x, weight, bias)
        return result * torch.linspace(1, 1.1, len(x)).unsqueeze(1)

    monkeypatch.setattr(prefill, "product", product)
    decoder = wide(torch.float32, False, rows=2)
    prompts = [random_tokens(1, n, seed=n)[0] for n in (150, 70)]
    read(decoder, prompts)
    together = kept(decoder, 1, 70)
    assert set(sizes) == {128, 22, 70}
    read(decoder, prompts[1:])
    assert torch.equal(kept(decoder, 0, 70), together)


# --- captured ---


def test_short_prompts_are_read_by_graphs(classes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep what they keep without, and the same bits beside others and after others."""
    monkeypatch.setattr(linear, "reads_plain", lambda dtype: False)  # a stand-in notes torch's ops
    plain, captured = wide(torch.float32, False, rows=6), wide(torch.float32, False, rows=6)
    graphs, made = FakeGraphs(), list[object]()
    captured.capture_prompts(lambda work: made.append(work) or graphs.record(work))
    alone = {}
    for length in (1, 64, 65, 100, 128, 200, 500, 600):
        prompt = random_tokens(1, length, seed=length)[0]
        for decoder in (plain, captured):
            read(decoder, [prompt], [2])
        alone[length] = kept(captured, 2, length)
        torch.testing.assert_close(alone[length], kept(plain, 2, length), atol=1e-4, rtol=1e-4)
    for lengths in ([65, 600, 1, 100, 64, 128], [500, 200, 0, 1], [64, 1, 64, 1, 64, 1]):
        read(captured, [random_tokens(1, n, seed=n)[0] for n in lengths])
        for row, length in enumerate(lengths):
            assert length == 0 or torch.equal(kept(captured, row, length), alone[length])
    sizes = {size for sizes in CLASSES[classes] for size in sizes}
    assert len(made) == 3 * (256 in sizes) + (512 in sizes)
    assert graphs.replays == (6 + 3 + 2 + 2) * (256 in sizes) + 2 * (512 in sizes)


def test_graphs_go_with_their_reader() -> None:
    """At once: what they hold is large, and nobody may be collecting cycles."""
    decoder = wide(torch.float32, False, rows=1)
    decoder.capture_prompts(lambda work: work)
    read(decoder, [random_tokens(1, 20)[0]])
    reader = weakref.ref(decoder._prompts)
    gc.disable()
    try:
        decoder.capture_prompts(None)
        read(decoder, [random_tokens(1, 20)[0]])
        assert reader() is None
    finally:
        gc.enable()


def test_a_new_cache_has_graphs_of_its_own() -> None:
    """For they rotate by the table of the one before, which may end sooner."""
    decoder = Decoder.from_model(random_model("qwen3", **WIDE))
    decoder.capture_prompts(lambda work: work)
    for positions in (256, 768):
        decoder.bind(Arena([decoder.cache_layout()], 1, positions, "cpu").caches[0])
        assert not decoder._prompts._graphs
        read(decoder, [random_tokens(1, 250, seed=1)[0]])
        assert list(decoder._prompts._graphs) == [256]


def test_a_prompt_goes_on_after_a_graph_has_read_it() -> None:
    """Beside prompts that begin where they are read from."""
    plain, captured = wide(torch.float32, False, rows=2), wide(torch.float32, False, rows=2)
    captured.capture_prompts(lambda work: work)
    first, second = random_tokens(2, 300)
    for decoder in (plain, captured):
        read(decoder, [first[:90]])
        decoder.prefill(torch.stack([first, second]), [300, 40], [0, 1], [90, 0])
    for row, length in ((0, 300), (1, 40)):
        torch.testing.assert_close(
            kept(captured, row, length), kept(plain, row, length), atol=1e-4, rtol=1e-4
        )


# --- what is written, and memory ---


def test_nothing_is_written_but_the_prompts(classes: str) -> None:
    decoder = wide(torch.float32, False, rows=5)
    prompts = [random_tokens(1, n, seed=n)[0] for n in (5, 200, 0, 300)]
    rows = [3, 0, 2, 4]
    read(decoder, prompts, rows)
    for row, prompt in zip(rows, prompts, strict=True):
        assert kept(decoder, row, len(prompt)).isfinite().all()
        decoder.cache[:, :, :, row, : len(prompt)] = torch.nan
    assert decoder.cache.isnan().all()


def test_a_blocks_memory_does_not_grow_with_the_prompts() -> None:
    """But for a mask over the keys of one piece, which a window bounds too: two queries a key."""
    model = random_model("mistral", sliding_window=300)
    decoder = bound(model, rows=4, positions=4096)
    largest = []
    for count, length in ((1, 700), (4, 4000)):
        tokens = random_tokens(count, length)
        with Allocations() as allocations:
            decoder.prefill(tokens, [length] * count)
        largest.append(allocations.largest)
    assert largest[0] == largest[1] <= max(CPU.blocks[-1] * 4 * 192, 2 * 128 * (304 + 128) * 4)


def test_the_last_layer_computes_keys_and_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    plain = prefill.product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, scale: None) -> Tensor:
        shapes.append(weight.shape[0])
        return plain(x, weight, bias)

    monkeypatch.setattr(prefill, "product", product)
    decoder = wide(torch.float32, False, rows=1)
    decoder.prefill(random_tokens(1, 70), [70])
    assert shapes == [(8 + 2 * 2) * 64, 256, 2 * 768, 256, (8 + 2 * 2) * 64]
