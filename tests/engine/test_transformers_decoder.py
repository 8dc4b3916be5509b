"""Any causal model of transformers computes its own logits over our cache, row by row alone."""

import logging
from functools import lru_cache
from typing import Any

import pytest
import torch
from foreign_models import KINDS, WINDOW, bound_foreign, foreign_model
from tiny_models import at, bound, random_model, random_tokens, reference_logits
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from hybridgen.engine.model import Model
from hybridgen.engine.transformers_decoder import TransformersDecoder, max_positions
from hybridgen.engine.transformers_probe import probe, window_of
from hybridgen.kernels.registry import Op

CACHE = ("cache", "past_key_values")
TOKENS = random_tokens(3, 60)


@lru_cache
def made(kind: str) -> tuple[PreTrainedModel, TransformersDecoder, Tensor]:
    """A model, its decoder over three rows, and its own logits of `TOKENS`."""
    model = foreign_model(kind)
    return model, bound_foreign(model, rows=3), reference_logits(model, TOKENS)


def read(decoder: TransformersDecoder, start: list[int], count: int) -> Tensor:
    """Logits of the next ``count`` tokens of each row of `TOKENS`."""
    index = torch.tensor(start)[:, None] + torch.arange(count)
    rows = TOKENS[: len(start)].gather(1, index)
    return decoder(rows, torch.tensor(start))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_model(kind: str) -> None:
    """Ragged rows after a prefill, chunks of 1 to 16, and again after a rollback."""
    _, decoder, expected = made(kind)
    lengths = [20, 5, 11]
    decoder.prefill(TOKENS[:, :20], lengths)
    start, found = list(lengths), []
    for count in (1, 2, 5, 16):
        found.append((start, read(decoder, start, count)))
        start = [first + count for first in start]
    decoder(torch.zeros(3, 9, dtype=torch.int64), torch.tensor(start) - 6)  # drafts to be forgotten
    back = [first - 6 for first in start]
    found.append((back, read(decoder, back, 10)))
    for first, logits in found:
        for row, position in enumerate(first):
            wanted = expected[row, position : position + logits.shape[1]]
            torch.testing.assert_close(logits[row], wanted, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_has_the_same_bits_in_any_company(kind: str) -> None:
    check_bits(made(kind)[1])


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "qwen2_moe"])
def test_bits_hold_for_any_number_of_threads(kind: str, threads: int) -> None:
    check_bits(bound_foreign(foreign_model(kind), rows=3))


def check_bits(decoder: TransformersDecoder) -> None:
    alone = torch.cat([read(decoder, [i], 1) for i in range(32)], 1)[0]
    assert torch.equal(read(decoder, [0], 16)[0], alone[:16])
    assert torch.equal(read(decoder, [0, 0, 0], 16)[0], alone[:16])
    assert torch.equal(read(decoder, [16, 3, 7], 5)[0], alone[16:21])
    assert torch.equal(read(decoder, [21], 11)[0], alone[21:])


def test_half_precision_has_the_same_bits_in_any_company() -> None:
    for kind in ("gemma2", "gpt2", "qwen2_moe"):
        decoder = bound_foreign(foreign_model(kind).bfloat16(), rows=3)
        assert decoder.dtype == torch.bfloat16
        alone = torch.cat([read(decoder, [i], 1) for i in range(16)], 1)[0]
        assert torch.equal(read(decoder, [0, 0, 0], 16)[0], alone)


def test_windows_of_layers_are_those_of_their_masks() -> None:
    assert [layer.window for layer in made("gemma2")[1].facts.layers] == [WINDOW, 0]
    assert [layer.window for layer in made("starcoder2")[1].facts.layers] == [WINDOW] * 2
    longer = probe(foreign_model("starcoder2", sliding_window=4096)).layers
    assert [layer.window for layer in longer] == [4096] * 2


def test_a_start_before_the_text_counts_as_its_first_position() -> None:
    decoder = made("gpt2")[1]
    first = read(decoder, [0], 1)[0, 0]
    twice = decoder(TOKENS[:1, :1].expand(1, 2), at(-1))[0]
    torch.testing.assert_close(twice, first.expand(2, -1), atol=0, rtol=0)


def test_prompts_go_to_the_rows_that_are_named() -> None:
    _, decoder, expected = made("olmo2")
    decoder.prefill(TOKENS[:2, :30], [30, 12], rows=[2, 0])
    logits = decoder(
        torch.stack([TOKENS[1, 12:14], TOKENS[2, :2], TOKENS[0, 30:32]]), at(12, 0, 30)
    )
    torch.testing.assert_close(logits[0], expected[1, 12:14], atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(logits[2], expected[0, 30:32], atol=3e-5, rtol=1e-4)


def test_a_prompt_goes_on_where_its_row_has_been_read() -> None:
    _, decoder, expected = made("olmo2")
    decoder.prefill(TOKENS[1:3, :30], [20, 30], rows=[2, 0])  # the second is of another text
    rest = TOKENS[:2, :30].clone()
    rest[1, :20] = 0  # it is not read
    decoder.prefill(rest, [30, 25], rows=[0, 2], starts=[0, 20])
    fed = torch.stack([TOKENS[0, 30:32], TOKENS[2, :2], TOKENS[1, 25:27]])
    logits = decoder(fed, at(30, 0, 25))
    torch.testing.assert_close(logits[0], expected[0, 30:32], atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(logits[2], expected[1, 25:27], atol=3e-5, rtol=1e-4)


def test_a_round_may_write_past_the_last_position() -> None:
    decoder = bound_foreign(foreign_model("gpt2", max_position_embeddings=32))
    assert decoder.max_positions == 32
    logits = decoder(TOKENS[:1, :16], at(30))
    assert logits.isfinite().all()


def test_the_model_still_works_and_shares_its_weights() -> None:
    model = foreign_model("gemma2")
    before = reference_logits(model, TOKENS)
    decoder = bound_foreign(model)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(reference_logits(model, TOKENS), before)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in decoder.module.parameters()} == shared
    assert (
        decoder.nbytes
        == decoder.weight_bytes
        == sum(parameter.nbytes for parameter in model.parameters())
    )


def test_it_computes_what_the_native_decoder_does() -> None:
    model = random_model("qwen3")
    ours, native = bound_foreign(model), bound(model)
    assert (ours.vocab_size, ours.cache_layout()) == (native.vocab_size, native.cache_layout())
    assert ours.max_positions == native.max_positions
    found, expected = (decoder(TOKENS[:1, :16], at(0)) for decoder in (ours, native))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_the_triton_kernel_sees_what_the_reference_sees(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted: heads that are padded, windows and soft caps, rows that are padding."""
    pytest.importorskip("triton")
    decoder, start = bound_foreign(foreign_model(kind), rows=2, positions=32), [0, 3]
    expected = read(decoder, start, 10)
    decoder.cache.zero_()
    decoder._tile = 32  # of which 20 are tokens
    monkeypatch.setattr(Op, "__call__", lambda op, *arguments: op.launcher()(*arguments))
    torch.testing.assert_close(read(decoder, start, 10), expected, atol=3e-5, rtol=1e-4)


def test_it_is_a_model_of_a_pair() -> None:
    models: list[Model] = [made("gpt2")[1]]
    assert models[0].vocab_size == 96


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.5] * 6,
    "long_factor": [4.0] * 6,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
        ("olmo2", {"rope_parameters": DYNAMIC, "max_position_embeddings": 64}),
    ],
)
def test_frequencies_that_follow_the_text_are_those_of_short_ones(
    kind: str, options: dict[str, Any]
) -> None:
    model = foreign_model(kind, **options)
    expected = reference_logits(model, TOKENS[:1])
    reference_logits(model, random_tokens(1, 200))  # leaves those of a long text behind
    decoder = bound_foreign(model, rows=2)
    assert decoder.max_positions == 64
    far = random_tokens(2, 16)
    decoder(far, at(0, 200))  # another row that is longer
    logits = torch.cat([read(decoder, [i], 10) for i in range(0, 60, 10)], 1)
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=1e-4)


def test_the_longest_text_is_what_the_config_says() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    yarn["original_max_position_embeddings"] = 512
    assert max_positions(foreign_model("olmo2", rope_parameters=yarn).config) == 2048
    assert max_positions(foreign_model("gemma3_text").config) == 512


# --- refusals ---

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1}
REFUSED = {
    "bloom": ({}, "BloomForCausalLM takes no cache or no positions"),
    "mamba": ({}, "MambaForCausalLM takes no cache or no positions"),
    "gpt_oss": (EXPERTS, "its attention takes s_aux"),
    "llama4_text": ({**EXPERTS, "intermediate_size_mlp": 80}, "its mask is neither causal nor"),
    "bert": ({}, "its mask is neither causal nor a sliding window"),
    "doge": ({}, "it adds a bias to its attention"),
    "bart": ({"d_model": 48}, "BartForCausalLM .* no positions"),
    "diffllama": ({}, "it changes keys or values between its cache and its attention"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_do_something_else_are_refused(kind: str) -> None:
    options, reason = REFUSED[kind]
    with torch.device("meta"):
        model = foreign_model(kind, **options)
    with pytest.raises(ValueError, match=reason):
        probe(model)


def test_a_model_that_decides_by_values_is_refused() -> None:
    class Deciding(torch.nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = foreign_model("olmo2")
    model.model.norm = Deciding()
    with pytest.raises(ValueError, match="decides by values on the host"):
        probe(model)


def test_a_model_that_bypasses_the_cache_is_refused() -> None:
    model = foreign_model("olmo2")
    attention: Any = model.model.layers[1].self_attn

    class Bypassing(type(attention)):
        def forward(self, *args: Any, **given: Any) -> Any:
            named = {name: x for name, x in given.items() if name not in CACHE}
            return super().forward(*args, **named)

    attention.__class__ = Bypassing
    with pytest.raises(ValueError, match="between its cache and its attention"):
        probe(model)


def test_a_model_that_counts_its_own_positions_is_refused() -> None:
    model = foreign_model("olmo2")
    rotary: Any = model.model.rotary_emb

    class Counting(type(rotary)):
        def forward(self, x: Tensor, position_ids: Tensor) -> Any:
            return super().forward(x, torch.arange(x.shape[1], device=x.device)[None])

    rotary.__class__ = Counting
    with pytest.raises(ValueError, match="does not read the positions that it is given"):
        probe(model)


def test_a_forward_on_the_host_is_told_and_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    class Hosted(torch.nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.ones((), device="cpu")

    model = foreign_model("olmo2")
    assert TransformersDecoder(model).capturable
    model.model.norm = Hosted()
    with caplog.at_level(logging.WARNING, "hybridgen"):
        decoder = TransformersDecoder(model)
    assert not decoder.capturable
    assert "Olmo2ForCausalLM runs without CUDA graphs: its forward does aten.ones" in caplog.text


def test_masks_that_are_no_windows_are_told() -> None:
    def chunked(row: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key // 16 == query // 16)

    def strided(row: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key % 2 == query % 2)

    def window(row: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - 12)

    assert window_of(window) == 12
    assert window_of(lambda row, head, query, key: key <= query) == 0
    for mask in (chunked, strided, lambda row, head, query, key: key <= query + 1):
        with pytest.raises(ValueError, match="neither causal nor a sliding window"):
            window_of(mask)


def test_a_config_without_a_context_has_none() -> None:
    config = AutoConfig.for_model("olmo2")
    object.__setattr__(config, "max_position_embeddings", None)
    assert max_positions(config) == 2**31 - 1
