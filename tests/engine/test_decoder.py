"""The native decoder computes transformers' logits, and its rows do not depend on each other."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, at, bound, random_model, random_tokens, reference_logits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.kernels import attention_plan
from hybridgen.kernels.attention_plan import is_compiled

# Two float32 computations of logits of size about 10, summed in other orders: ten products deep,
# each within a few ulp (1e-6) of the other. A wrong formula is off by 0.01 and more.
TOLERANCE = 1e-4

ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("cwm", {}),
    ("granite", {}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("ministral", {}),
    ("mistral", {}),
    ("phi3", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("seed_oss", {"attention_out_bias": True}),
    ("smollm3", {}),
]
SCALED = [
    (*case, rope) for case in FAMILIES for rope in ROPE if case[0] != "phi3" or rope == "default"
]


def decode(decoder: Decoder, tokens: Tensor, chunks: list[int]) -> Tensor:
    """Logits of ``tokens`` [B, T], fed in chunks of the given sizes."""
    first, parts = 0, []
    for size in chunks:
        start = torch.full((len(tokens),), first)
        parts.append(decoder(tokens[:, first : first + size], start))
        first += size
    return torch.cat(parts, 1)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE)


# --- the same function as transformers ---


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "options", "rope"), SCALED)
def test_logits_are_those_of_transformers(
    kind: str, options: dict[str, Any], rope: str, tied: bool
) -> None:
    parameters = {"rope_theta": 1000.0, **ROPE[rope]}
    model = random_model(kind, tie_word_embeddings=tied, rope_parameters=parameters, **options)
    tokens = random_tokens(2, 24)
    expected = reference_logits(model, tokens)
    assert expected.std() > 0.3  # logits that say something
    assert close(decode(bound(model, rows=2), tokens, [10, 1, 5, 1, 7]), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "options"), FAMILIES)
def test_packed_weights_give_the_same_logits(
    kind: str, options: dict[str, Any], tied: bool
) -> None:
    model = random_model(kind, tie_word_embeddings=tied, **options)
    tokens = random_tokens(2, 24)
    expected = reference_logits(model, tokens)
    decoder = bound(model, rows=2)
    size = decoder.weight_bytes
    decoder.pack()
    assert close(decode(decoder, tokens, [10, 1, 5, 1, 7]), expected)
    # A tied head is laid out apart from the embedding, of which a forward reads a row a token.
    assert decoder.weight_bytes == size


@pytest.mark.parametrize("q_heads, kv_heads, head_dim", [(3, 1, 32), (6, 6, 8), (8, 2, 12)])
def test_head_shapes(q_heads: int, kv_heads: int, head_dim: int) -> None:
    shape = dict(num_attention_heads=q_heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    model = random_model("qwen3", **shape)
    tokens = random_tokens(1, 20)
    expected = reference_logits(model, tokens)
    for invariant in (True, False):
        decoder = bound(model, batch_invariant=invariant)
        assert close(decode(decoder, tokens, [1, 2, 3, 14]), expected)


def test_dynamic_positions_past_the_original_context() -> None:
    # transformers recomputes all positions' frequencies with the current length, so its cached
    # keys carry the frequencies of their own time: the same only when decoding token by token.
    parameters = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}
    model = random_model("llama", max_position_embeddings=16, rope_parameters=parameters)
    tokens = random_tokens(1, 30)
    expected, cache = [], None
    with torch.no_grad():
        for i in range(30):
            step = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            expected.append(step.logits)
    decoder = bound(model)
    assert decoder.max_positions == 32
    assert close(decode(decoder, tokens, [1] * 30), torch.cat(expected, 1))
    assert close(decode(decoder, tokens, [5, 16, 9]), torch.cat(expected, 1))


SLIDING: list[tuple[str, dict[str, Any]]] = [
    ("cwm", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
    ("ministral", {"sliding_window": 7}),
    ("mistral", {"sliding_window": 7}),
    ("phi3", {"sliding_window": 7}),
    ("smollm3", {"sliding_window": 7, "use_sliding_window": True}),
    ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}),
    (
        "qwen3",
        {
            "sliding_window": 7,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    ("qwen2", {"sliding_window": 7, "use_sliding_window": False, "max_window_layers": 0}),
]


@pytest.mark.parametrize(("kind", "options"), SLIDING)
def test_sliding_windows_past_the_window(kind: str, options: dict[str, Any]) -> None:
    model = random_model(kind, **options)
    tokens = random_tokens(1, 300)
    expected = reference_logits(model, tokens)
    decoder = bound(model, positions=512)
    decoder.prefill(tokens, [250])
    for first, count in ((250, 1), (251, 16), (267, 3), (250, 8)):
        ours = decoder(tokens[:, first : first + count], at(first))
        assert close(ours, expected[:, first : first + count])


@pytest.mark.parametrize("kind", ["qwen3", "granite"])
def test_bfloat16_is_as_near_to_the_truth_as_transformers(kind: str) -> None:
    truth_model = random_model(kind, hidden_size=64, intermediate_size=192)
    model = copy.deepcopy(truth_model).to(torch.bfloat16)
    # The truth has the rounded weights, so that what remains is rounding on the way.
    truth_model.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    tokens = random_tokens(4, 32)
    truth = reference_logits(truth_model, tokens)
    theirs = (reference_logits(model, tokens).float() - truth).square().mean().sqrt()
    decoder = bound(model, rows=4)
    logits = decode(decoder, tokens, [16, 16])
    assert logits.dtype == torch.bfloat16
    # Our attention is float32, so we round less often; 1.1 leaves room for luck over 12,000 logits.
    assert (logits.float() - truth).square().mean().sqrt() < 1.1 * theirs


# --- rows, chunks and rollback ---


def test_ragged_rows_without_padding() -> None:
    model = random_model("qwen3")
    lengths = [5, 260, 1, 31]
    tokens = random_tokens(4, 300)
    decoder = bound(model, rows=4, positions=512)
    decoder.prefill(tokens, lengths)
    for count in (1, 4):
        fed = torch.stack([tokens[b, n : n + count] for b, n in enumerate(lengths)])
        logits = decoder(fed, at(*lengths))
        for b, n in enumerate(lengths):
            expected = reference_logits(model, tokens[b : b + 1, : n + count])[0, -count:]
            assert close(logits[b], expected)


@pytest.mark.parametrize("invariant", [True, False])
def test_fewer_rows_than_the_cache_has(invariant: bool) -> None:
    model = random_model("qwen2")
    tokens = random_tokens(3, 12)
    decoder = bound(model, rows=5, batch_invariant=invariant)
    assert close(decode(decoder, tokens, [8, 4]), reference_logits(model, tokens))


def test_more_rows_than_a_block() -> None:
    model = random_model("qwen3")
    decoder = bound(model, rows=70)
    tokens = random_tokens(70, 3)
    expected = reference_logits(model, tokens)
    assert close(decode(decoder, tokens, [2, 1]), expected)
    assert close(decoder(tokens[:9].repeat(1, 5), at(*[0] * 9))[:, :3], expected[:9])


def test_overwriting_rejected_tokens_equals_never_having_written_them() -> None:
    model = random_model("qwen3")
    decoder, fresh = bound(model), bound(model)
    tokens = random_tokens(1, 20)
    for one in (decoder, fresh):
        one.prefill(tokens, [10])
    decoder(random_tokens(1, 8, seed=9), at(10))  # all rejected
    for first in (10, 14):
        part = tokens[:, first : first + 4]
        assert torch.equal(decoder(part, at(first)), fresh(part, at(first)))


def test_a_start_of_minus_one_counts_as_zero() -> None:
    model = random_model("qwen3")
    decoder = bound(model, rows=2)
    tokens = random_tokens(2, 6)
    decoder.prefill(tokens[:, :5], [0, 5])
    # Row 0 has one token in all: its "last two" are that token twice.
    fed = torch.stack([tokens[0, :1].repeat(2), tokens[1, 4:6]])
    logits = decoder(fed, at(-1, 4))
    assert close(logits[0], reference_logits(model, tokens[:1, :1])[0].expand(2, -1))
    assert close(logits[1], reference_logits(model, tokens[1:])[0, 4:6])


def test_a_stale_cache_is_never_seen() -> None:
    model = random_model("qwen3")
    clean, stale = bound(model, rows=2), bound(model, rows=2)
    stale.cache.fill_(1e4)
    tokens = random_tokens(2, 9)
    assert torch.equal(decode(clean, tokens, [4, 5]), decode(stale, tokens, [4, 5]))


# --- bits: a token's logits do not depend on what is computed with it ---


# Widths at which the libraries do switch kernels with the number of rows.
WIDE: dict[str, Any] = dict(
    hidden_size=256,
    intermediate_size=768,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=512,
)
BORDERS = (255, 256, 257, 511, 512)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_tokens_rows_or_mates(
    dtype: torch.dtype, packed: bool, threads: int
) -> None:
    model = random_model("qwen3", dtype, **WIDE)
    decoder = Decoder.from_model(model)
    if packed:
        decoder.pack()
    arena = Arena([decoder.cache_layout()], 8, 1024, "cpu")
    cache = arena.caches[0].normal_(generator=torch.Generator().manual_seed(3))
    tokens = random_tokens(8, 1024)
    # Threads that share cores with other work wait long for each other: one border for two of them.
    for border in BORDERS if threads == 1 else (256,):
        # Row 0 alone, one token at a time, over the border.
        decoder.bind(cache[:, :, :, :1].clone())
        first = border - 8
        alone = decode_from(decoder, tokens[:1], first, [1] * 16)
        for chunks in ([2] * 8, [3, 5, 7, 1], [4, 8, 4], [16], [9, 6, 1]):
            decoder.bind(cache[:, :, :, :1].clone())
            assert torch.equal(decode_from(decoder, tokens[:1], first, chunks), alone)
        for rows, count in ((2, 1), (3, 5), (5, 2), (8, 8), (8, 1), (7, 16)):
            decoder.bind(cache[:, :, :, :rows].clone())
            mates = [first, 3, 700, border, 0, 511, 255, 990][:rows]
            fed = torch.stack([tokens[b, n : n + count] for b, n in enumerate(mates)])
            assert torch.equal(decoder(fed, at(*mates))[0], alone[0, :count])


def decode_from(decoder: Decoder, tokens: Tensor, first: int, chunks: list[int]) -> Tensor:
    parts = []
    for size in chunks:
        parts.append(decoder(tokens[:, first : first + size], at(first)))
        first += size
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "granite", "smollm3"])
@pytest.mark.parametrize("heads", [(3, 1), (9, 3), (16, 2)])
def test_bits_for_other_families_and_groups(kind: str, heads: tuple[int, int]) -> None:
    options: dict[str, Any] = {"sliding_window": 100} if kind == "mistral" else {}
    shape = dict(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=32)
    model = random_model(kind, hidden_size=288, intermediate_size=384, **shape, **options)
    tokens = random_tokens(3, 300)
    decoder = bound(model, rows=3, positions=512)
    decoder.prefill(tokens, [250, 250, 250])
    alone = decode_from(decoder, tokens[:1], 250, [1] * 12)
    for chunks in ([12], [5, 7], [2, 4, 6]):
        assert torch.equal(decode_from(decoder, tokens[:1], 250, chunks), alone)
    mates = decoder(
        torch.stack([tokens[0, 250:256], tokens[1, :6], tokens[2, 245:251]]), at(250, 0, 245)
    )
    assert torch.equal(mates[0], alone[0, :6])


# --- memory and interface ---


class Allocations(TorchDispatchMode):
    """Remembers the largest storage that any op made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        held = {x.untyped_storage()._cdata for x in given}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in held:
                self.largest = max(self.largest, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_binding_a_cache_writes_nothing_to_it(dtype: torch.dtype) -> None:
    decoder = Decoder.from_model(random_model("qwen3").to(dtype))
    cache = Arena([decoder.cache_layout()], 2, 64, "cpu").caches[0].normal_()
    before = cache.clone()
    decoder.bind(cache)
    assert torch.equal(cache, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layers_of_a_step_share_what_attention_plans(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, make = bound(random_model("qwen3").to(dtype), rows=2), attention_plan._plan
    made: list[attention_plan.Plan] = []

    def counted(*given: Any) -> attention_plan.Plan:
        made.append(make(*given))
        return made[-1]

    monkeypatch.setattr(attention_plan, "_plan", counted)
    decoder(random_tokens(2, 1), at(30, 40))
    assert len(made) == (0 if is_compiled(decoder.head_dim, dtype) else 1)


def test_a_step_never_copies_the_cache() -> None:
    decoder = bound(random_model("qwen3"), rows=3, positions=4096)
    tokens = random_tokens(2, 1)
    with Allocations() as allocations:
        decoder(tokens, at(3000, 4000))
    mask = 2 * 8 * 4096 * 4  # rows x queries padded to a tile x keys, float32
    keys_of_one_layer = 2 * 2 * 4096 * 16 * 4
    assert allocations.largest <= mask < keys_of_one_layer
    assert allocations.largest == mask or is_compiled(16, torch.float32)


def test_what_a_decoder_says_of_itself() -> None:
    model = random_model("qwen3", torch.bfloat16, tie_word_embeddings=True)
    decoder = Decoder.from_model(model)
    assert (decoder.vocab_size, decoder.max_positions) == (VOCAB, 1024)
    assert (decoder.device.type, decoder.dtype) == ("cpu", torch.bfloat16)
    layout = decoder.cache_layout()
    # On CPU attention is float32, and so is the cache.
    assert (layout.layers, layout.kv_heads, layout.head_dim) == (2, 2, 16)
    assert layout.dtype == torch.float32
    stored = sum(p.numel() for p in model.parameters()) * 2
    qk_norms = 2 * (4 + 2) * 16 * 4  # kept in float32, a row a head
    assert decoder.weight_bytes == stored - 2 * 2 * 16 * 2 + qk_norms
    assert decoder.config is model.config
    assert decoder.generation_config is model.generation_config
