"""The engine on a card: captured rounds write what eager ones do, wait for nothing, grow nothing.

Every test runs without a card too, as far as it goes, on a tiny pair: there rounds are captured by
a stand-in (`fake_graph`), which shows that the test itself holds. What only a device can show is
marked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import random_model, train_tokenizer
from fake_graph import as_on_a_gpu
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from hybridgen import HybridGenerator, verify_exactness
from hybridgen.engine import loop
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.pair import Pair
from hybridgen.engine.reports import Immediate
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.launch import programmatic_dependent_launch
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.strategies import base
from hybridgen.strategies.single import single_round

needs_card = pytest.mark.gpu
PROMPTS = [
    "def area(radius):\n", "import os\n", "class Stack:\n    def __init__(self):\n", "x",
    "for item in", "def test_", "# A list of\n", "return", "while True:\n    ", "try:\n", "from",
]  # fmt: skip
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "num_drafts": 4},
    "coupled": {"verification": "coupled", "num_drafts": 8, **SAMPLED},
    "rejection": {"verification": "rejection", "num_drafts": 4, **SAMPLED},
    "llm": {"strategy": "llm", **SAMPLED},
    "slm": {"strategy": "slm", **SAMPLED},
    "entropy": {"strategy": "entropy", "llm_fraction": 0.2, **SAMPLED},
    "uncertainty": {"strategy": "uncertainty", "llm_consecutive_tokens": 3, **SAMPLED},
}


@pytest.fixture(scope="module", params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(place: str, *models: Any, **options: Any) -> HybridGenerator:
    """The embedded pair, or ``models``, on a card; for the stand-in a tiny pair of float32."""
    if place == "cuda":
        return HybridGenerator(*models, device="cuda", max_batch_size=4, max_seq_len=512, **options)
    tokenizer = train_tokenizer()
    size = len(tokenizer)
    pair = random_model(size, 1, 32, seed=1), random_model(size, 2, 64, seed=2)
    generator = HybridGenerator(
        *pair, tokenizer=tokenizer, device="cpu", max_batch_size=4, max_seq_len=256
    )
    as_on_a_gpu(generator.pair)
    return generator


@pytest.fixture(scope="module")
def embedded(place: str) -> HybridGenerator:
    return made(place)


def shaped(size: int, hidden: int, inner: int, heads: int, seed: int) -> Qwen3ForCausalLM:
    """Two layers of a model's true shapes, random; sharp enough that sampling is not uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        initializer_range=0.05,
        eos_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["embedded", pytest.param("shapes", marks=needs_card)])
def generator(
    place: str, request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast
) -> HybridGenerator:
    """The embedded pair; and layers as of Qwen3-1.7B and Qwen3-8B."""
    if request.param == "embedded" or place != "cuda":
        return made(place)
    size = len(tiny_tokenizer)
    pair = shaped(size, 2048, 6144, 16, 1), shaped(size, 4096, 12288, 32, 2)
    return made(place, *pair, tokenizer=tiny_tokenizer, dtype=torch.bfloat16)


def write(generator: HybridGenerator, prompt: Any, **options: Any) -> Any:
    given = {"max_new_tokens": 24, "seed": 5, "print_stats": False, **options}
    return generator.generate(prompt, **given)


@contextmanager
def eagerly(pair: Pair) -> Iterator[None]:
    """Rounds are called, not captured, and each is read before the next."""
    batch = pair.batch

    def plain(rows: int) -> Batch:
        new: dict[str, Any] = {"_rounds": {}, "_drafts": {}, "_owned": {}}
        return replace(batch(rows), capture=None, reports=Immediate(), **new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "batch", plain)
        yield


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_replay_equals_the_eager_round(generator: HybridGenerator, name: str) -> None:
    for prompt in (PROMPTS[0], PROMPTS[:4], PROMPTS[:7]):
        with eagerly(generator.pair):
            expected = write(generator, prompt, **STRATEGIES[name])
        assert write(generator, prompt, **STRATEGIES[name]).tokens == expected.tokens


def test_short_prompts_are_read_by_graphs(generator: HybridGenerator, place: str) -> None:
    """They keep what they keep without, and the same bits beside others and after others."""
    pair, vocab = generator.pair, generator.pair.vocab_size
    assert pair.graphs is not None
    record = pair.graphs.record if place == "cuda" else lambda work: work  # numba's are not noted
    tokens = torch.arange(4 * 300, dtype=torch.int64, device=generator.device).view(4, 300)
    tokens = tokens * 7 % min(vocab, 300)
    for model in (pair.slm, pair.llm):
        assert isinstance(model, Decoder)

        def read(lengths: list[int], rows: list[int], model: Any = model) -> list[torch.Tensor]:
            model.cache.fill_(7.0)
            model.prefill(tokens[rows], lengths, rows)
            parts = zip(rows, lengths, strict=True)
            return [model.cache[:, :, :, row, :length].clone() for row, length in parts]

        lengths = [5, 200, 60, 120]
        with pair.turn(), torch.inference_mode():
            model.capture_prompts(None)
            plain = read(lengths, [0, 1, 2, 3])
            model.capture_prompts(record)
            first = read(lengths, [0, 1, 2, 3])
            alone = [read([length], [row])[0] for row, length in enumerate(lengths)]
        assert model._prompts._graphs
        for one, other, without in zip(first, alone, plain, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(one, without, atol=0.05 * without.abs().max().item(), rtol=0)


def test_a_round_is_captured_anew_for_other_launches(generator: HybridGenerator) -> None:
    batch = generator.pair.batch(1)

    def asked() -> Any:
        with generator.pair.turn(), torch.inference_mode():
            return batch.round(single_round, SOURCE_LLM)

    first = asked()
    with programmatic_dependent_launch(False):
        without = asked()
        assert without is not first and without is asked()
    assert asked() is first


@pytest.mark.parametrize("name", STRATEGIES)
def test_dependent_launches_write_the_same(generator: HybridGenerator, name: str) -> None:
    for prompt in (PROMPTS[0], PROMPTS[:4]):
        written = []
        for dependent in (False, True):
            with programmatic_dependent_launch(dependent):
                written.append(write(generator, prompt, **STRATEGIES[name]).tokens)
        assert written[0] == written[1]


def test_a_replay_of_dependent_launches_has_the_same_bits(generator: HybridGenerator) -> None:
    """Logits of a text's next tokens, each forward right after the one before."""
    pair, count = generator.pair, 12
    device, vocab = pair.llm.device, pair.llm.vocab_size
    logits = torch.empty(2, count, 1, vocab, dtype=pair.llm.dtype, device=device)
    tokens = torch.tensor([[5], [6]], device=device)
    start = torch.zeros(2, dtype=torch.int64, device=device)

    def forwards() -> None:
        for i in range(count):
            logits[:, i] = pair.llm(tokens + i, start + i)

    def replayed(dependent: bool) -> torch.Tensor:
        with programmatic_dependent_launch(dependent):
            replay = pair.graphs.capture(forwards)
            logits.fill_(float("nan"))
            replay()
            return logits.clone()

    with pair.turn(), torch.inference_mode():
        expected = replayed(False)
        assert not expected.isnan().any()
        for _ in range(3):
            assert torch.equal(replayed(True), expected)


def test_speculation_is_exact(generator: HybridGenerator) -> None:
    report = verify_exactness(generator, PROMPTS[:2], max_new_tokens=32, num_drafts=(1, 4, 8, 15))
    assert report, str(report)


def test_every_number_of_drafts_writes_the_llms_text(embedded: HybridGenerator) -> None:
    """K changes from call to call, over the same state and memory."""
    for options in ({"temperature": 0.0}, {"verification": "coupled", **SAMPLED}):
        sampling = {k: v for k, v in options.items() if k != "verification"}
        alone = write(embedded, PROMPTS[:3], strategy="llm", **sampling).tokens
        for num_drafts in (15, 1, 7, 2, 12, 4):
            assert write(embedded, PROMPTS[:3], num_drafts=num_drafts, **options).tokens == alone


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_refilled_row_equals_a_fresh_one(embedded: HybridGenerator, name: str) -> None:
    options = {**STRATEGIES[name], "stop": ["\n\n", "  ", "e("], "max_new_tokens": 32}
    together = write(embedded, PROMPTS, **options)
    for row in (0, 4, 7, 10):
        mates = [PROMPTS[row], *PROMPTS[:3]]  # rows of one width: the SLM's near-ties stay
        alone = write(embedded, mates, **{**options, "seed": [5 + row, 91, 92, 93]})
        assert together.tokens[row] == alone.tokens[0]


def test_two_generators_take_turns(place: str, embedded: HybridGenerator) -> None:
    other = made(place)
    for name in ("coupled", "entropy"):
        texts = [
            write(generator, PROMPTS[:2], **STRATEGIES[name]).tokens
            for generator in (embedded, other, embedded, other)
        ]
        assert texts[0] == texts[2]
        assert texts[1] == texts[3]


def without_waiting(run: Callable[..., None]) -> Callable[..., None]:
    """The loop, in which an op that waits for the device raises."""

    def guarded(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


@needs_card
@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_in_the_loop_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads, prompts, rounds and reports; only the report's event is waited for."""
    generator = made("cuda")
    write(generator, PROMPTS, **STRATEGIES[name])
    monkeypatch.setattr(base, "run", without_waiting(loop.run))
    write(generator, PROMPTS, **STRATEGIES[name])


@needs_card
def test_memory_does_not_grow_in_10_000_tokens() -> None:
    generator = made("cuda")
    options = {"ignore_eos": True, "max_new_tokens": 400}
    for name in ("rejection", "llm", "entropy"):
        write(generator, PROMPTS[:4], **{**STRATEGIES[name], **options})
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for seed in range(7):
            result = write(generator, PROMPTS[:4], **{**STRATEGIES[name], **options, "seed": seed})
            assert result.stats["total_tokens"] == 1600
        torch.cuda.synchronize()
        assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@needs_card
def test_replays_use_no_new_launch_of_the_host() -> None:
    """A replayed round is one launch of a graph: the host's own are the copies around it."""
    from torch.profiler import ProfilerActivity, profile

    generator = made("cuda")
    options = {**STRATEGIES["llm"], "ignore_eos": True, "max_new_tokens": 64}
    write(generator, PROMPTS[0], **options)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        write(generator, PROMPTS[0], **options)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert counts.get("cudaGraphLaunch", 0) >= 64
    assert counts.get("cudaLaunchKernel", 0) + counts.get("cuLaunchKernel", 0) < 64 * 8
