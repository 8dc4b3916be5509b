"""What calls leave behind in the memory they share: nothing that a later one could notice."""

from typing import Any

import pytest
import torch
from conftest import TinyPair, random_model

from hybridgen import GenerationStrategy, HybridGenerator
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.limits import MAX_DRAFTS
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch

STRATEGIES = ["speculative", "uncertainty", "entropy", "llm", "slm"]
BROKEN = 7
"""The models' embedding of this id is NaN."""


# --- states ---


@pytest.fixture(scope="module")
def pair() -> Pair:
    slm, llm = random_model(384, 1, 32, seed=1), random_model(400, 2, 64, seed=2)
    return Pair(Decoder.from_model(slm, batch_invariant=False), Decoder.from_model(llm), 3, 250)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """What a request loads and its rounds write, by name."""
    drafts = batch.drafts(MAX_DRAFTS, True)
    parts = {"rows": batch.rows, "drafts": drafts, "routing": batch.routing}
    views = ("ends", "tokens of drafts")
    named = {
        f"{name} of {part}": value
        for part, owner in parts.items()
        for name, value in vars(owner).items()
        if isinstance(value, torch.Tensor)
    }
    return {name: value for name, value in named.items() if not name.startswith(views)}


def test_the_state_of_every_batch_lies_in_the_arena(pair: Pair) -> None:
    storage = pair.arena.workspace.untyped_storage().data_ptr()
    for rows in (1, 2, 3):
        batch = pair.batch(rows)
        assert pair.batch(rows) is batch
        for name, tensor in tensors(batch).items():
            assert tensor.untyped_storage().data_ptr() == storage, name
            assert tensor.data_ptr() == tensors(pair.batch(3))[name].data_ptr(), name


def test_parts_of_the_state_do_not_overlap(pair: Pair) -> None:
    for cache in pair.arena.caches:
        cache.zero_()
    parts = list(tensors(pair.batch(3)).values())
    for value, part in enumerate(parts):
        part.fill_(value % 2)
    for value, part in enumerate(parts):
        assert (part == value % 2).all()
    assert not any(cache.any() for cache in pair.arena.caches)


def test_fewer_drafts_are_the_first_of_the_most(pair: Pair) -> None:
    batch = pair.batch(2)
    most = batch.drafts(MAX_DRAFTS, True)
    for value in (most.block, most.q, most.truncation):
        assert value is not None
        value.copy_(torch.arange(value.numel()).view(value.shape))
    for count in range(1, MAX_DRAFTS + 1):
        some = batch.drafts(count, True)
        assert torch.equal(some.block, most.block[:, : count + 1])
        assert torch.equal(some.tokens, some.block[:, 1:])
        assert some.q is not None and most.q is not None
        assert torch.equal(some.q, most.q[:, :count])
        assert torch.equal(some.truncation, most.truncation[:, :count])
        assert batch.drafts(count, False).q is None


def test_the_budget_counts_the_states() -> None:
    slm, llm = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    small, large = (
        Pair(Decoder.from_model(slm, batch_invariant=False), Decoder.from_model(llm), rows, 200)
        for rows in (1, 8)
    )
    drafts = 8 * MAX_DRAFTS * 384 * 4
    assert large.arena.workspace.nbytes > drafts
    caches = sum(cache.nbytes for cache in large.arena.caches)
    assert large.arena.nbytes >= caches + large.arena.workspace.nbytes
    assert large.arena.workspace.nbytes > small.arena.workspace.nbytes
    with pytest.raises(ValueError, match="max_batch_size or max_seq_len"):
        Pair(small.slm, small.llm, 10_000_000, 200)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_another_shape_left_does_not_matter(tiny_pair: TinyPair, strategy: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 9, "seed": 5, "print_stats": False}
    prompts = ["def area(radius):\n", "größe", "the quick brown fox"]

    def fresh() -> HybridGenerator:
        return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)

    expected = fresh().generate(prompts[0], strategy, **options).tokens
    used = fresh()
    for other in STRATEGIES:
        for drafts in (15, 1, 6):
            used.generate(prompts, other, num_drafts=drafts, **options)
            used.pair.arena.workspace.fill_(255)  # NaN, -1, True
            assert used.generate(prompts[0], strategy, **options).tokens == expected


# --- NaN ---


@pytest.fixture
def fragile(tiny_tokenizer: Any) -> HybridGenerator:
    """A pair that breaks at the token `BROKEN`; the SLM's vocabulary ends before the LLM's."""
    models = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    for model in models:
        model.get_input_embeddings().weight.data[BROKEN] = torch.nan
        head = model.get_input_embeddings().weight.detach().clone()
        head[BROKEN] = 0  # never the largest logit
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(head)
    return HybridGenerator(*models, tokenizer=tiny_tokenizer, device="cpu", max_seq_len=250)


INNOCENT = [50, 60, 70]  # shorter than what the broken calls below wrote


class ReadsAnything(GenerationStrategy):
    def generate(self, slm: Any, llm: Any, **rest: Any) -> Any:
        for model in (slm, llm):
            model(torch.tensor([[BROKEN] * 16]), torch.tensor([200]))
        return "", {}


def break_in_a_stream(generator: HybridGenerator) -> None:
    def stop(piece: str) -> None:
        for cache in generator.pair.arena.caches:  # what it would have refused a moment later
            cache[:, :, :, 0, 40] = torch.nan
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate([1, 2, 3], "llm", stream=stop, print_stats=False, ignore_eos=True)


def break_every_row(generator: HybridGenerator, strategy: str) -> None:
    with pytest.raises(ValueError, match="NaN"):
        generator.generate([[BROKEN] * 60] * 2, strategy, max_new_tokens=4, print_stats=False)


def break_the_model_that_is_not_asked(generator: HybridGenerator) -> None:
    """Only the LLM reads NaN, and its logits are never looked at."""
    plain = generator.slm.weights.embedding[BROKEN].clone()
    generator.slm.weights.embedding[BROKEN] = 0.1
    generator.generate(
        [BROKEN] * 60, "entropy", threshold=1000, max_new_tokens=4, print_stats=False
    )
    generator.slm.weights.embedding[BROKEN] = plain


ACCIDENTS = {
    "routing": break_the_model_that_is_not_asked,
    "interrupt": break_in_a_stream,
    "custom": lambda generator: generator.generate([1, 2], "any", print_stats=False),
    **{name: lambda g, name=name: break_every_row(g, name) for name in STRATEGIES},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_after_nan_the_next_prompt_has_its_text(
    fragile: HybridGenerator, accident: str, strategy: str
) -> None:
    fragile.strategies["any"] = ReadsAnything()
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0.0, "print_stats": False}
    prompts = [INNOCENT, INNOCENT[1:], INNOCENT[2:]]
    expected = fragile.generate(prompts, strategy, **options).tokens
    for cache in fragile.pair.arena.caches:
        cache.zero_()
    ACCIDENTS[accident](fragile)
    assert any(not cache.isfinite().all() for cache in fragile.pair.arena.caches)
    assert fragile.generate(prompts, strategy, **options).tokens == expected
