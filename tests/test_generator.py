"""What `generate` gives back: text, tokens, statistics and stream agree and end together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyPair, random_model, save, train_tokenizer
from transformers import MambaConfig, MambaForCausalLM, TextStreamer

from hybridgen import HybridGenerator
from hybridgen.engine.loop import Text
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.strategies.base import RoundStrategy
from hybridgen.utils import new_text

PROMPT = "def area(radius):\n"
STRATEGIES = ["speculative", "uncertainty", "entropy", "llm", "slm"]
COMMON_STATS = {
    "strategy",
    "total_tokens",
    "slm_tokens",
    "llm_tokens",
    "decode_steps",
    "elapsed_time",
    "tokens_per_second",
    "prompt_tokens",
    "seed",
}
DRAFT_STATS = {
    "draft_generated",
    "draft_accepted",
    "acceptance_rate",
    "mean_drafts",
    "accepted_per_position",
    "num_drafts",
    "verification",
}
ROUTING_STATS = {"threshold", "llm_consecutive_tokens", "slm_usage"}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)


def write(generator: HybridGenerator, prompt: Any = PROMPT, **options: Any) -> Any:
    settings = {"max_new_tokens": 30, "temperature": 0.9, "seed": 1, "print_stats": False}
    return generator.generate(prompt, **{**settings, **options})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_result_and_statistics(generator: HybridGenerator, strategy: str) -> None:
    result = write(generator, strategy=strategy, ignore_eos=True, num_drafts=4)
    text, stats = result
    prompt_ids = generator.tokenizer(PROMPT)["input_ids"]
    assert text == new_text(generator.tokenizer, prompt_ids, result.tokens)
    assert result.full_text == PROMPT + text
    assert len(result.tokens) == stats["total_tokens"] == 30
    assert stats["slm_tokens"] + stats["llm_tokens"] == 30
    assert stats["prompt_tokens"] == len(generator.tokenizer(PROMPT)["input_ids"])
    assert stats["seed"] == 1
    assert stats["tokens_per_second"] == pytest.approx(30 / stats["elapsed_time"])
    extra = {"speculative": DRAFT_STATS, "uncertainty": ROUTING_STATS, "entropy": ROUTING_STATS}
    assert set(stats) == COMMON_STATS | extra.get(strategy, set())


def test_draft_statistics_add_up(generator: HybridGenerator) -> None:
    stats = write(generator, num_drafts=3, ignore_eos=True).stats
    assert stats["draft_generated"] == 3 * stats["decode_steps"]
    assert stats["draft_accepted"] == stats["slm_tokens"] == sum(stats["accepted_per_position"])
    assert stats["llm_tokens"] in (stats["decode_steps"], stats["decode_steps"] - 1)
    assert stats["acceptance_rate"] == stats["draft_accepted"] / stats["draft_generated"]
    positions = stats["accepted_per_position"]
    assert positions == sorted(positions, reverse=True)


def test_a_model_that_drafts_for_itself_accepts_everything(tiny_pair: TinyPair) -> None:
    itself = HybridGenerator(tiny_pair.llm, tiny_pair.llm, device="cpu", dtype=torch.bfloat16)
    stats = write(itself, temperature=0.0, num_drafts=4, ignore_eos=True).stats
    assert stats["decode_steps"] == 6
    assert stats["accepted_per_position"] == [6, 6, 6, 6]
    assert (stats["slm_tokens"], stats["llm_tokens"]) == (24, 6)


def test_the_block_is_printed(generator: HybridGenerator, capsys: Any) -> None:
    stats = write(generator, print_stats=True, num_drafts=4).stats
    assert capsys.readouterr().out.splitlines() == [
        "=" * 60,
        "Strategy: speculative",
        f"Time taken: {stats['elapsed_time']:.2f}s",
        f"Total tokens generated: {stats['total_tokens']}",
        f"Speed: {stats['tokens_per_second']:.2f} tok/s",
        f"Decode steps: {stats['decode_steps']}",
        f"Draft tokens: {stats['draft_generated']}, Accepted: {stats['draft_accepted']}, "
        f"Acceptance rate: {stats['acceptance_rate']:.2%}",
        f"SLM tokens: {stats['slm_tokens']}, LLM tokens: {stats['llm_tokens']}",
        "=" * 60,
    ]


def test_the_block_begins_a_line_after_text_that_was_streamed(
    generator: HybridGenerator, capsys: Any
) -> None:
    def stream(piece: str) -> None:
        print(piece, end="", flush=True)

    for seed in range(4):
        result = write(generator, seed=seed, stream=stream, print_stats=True, temperature=2.0)
        end = "" if result.text.endswith("\n") else "\n"
        assert capsys.readouterr().out == result.text + end + result.summary + "\n"
        text = write(generator, seed=seed, stream=stream).text
        assert capsys.readouterr().out == text


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rows", [1, 3])
def test_statistics_are_json(generator: HybridGenerator, strategy: str, rows: int) -> None:
    routed = strategy in ("uncertainty", "entropy")
    for fraction in (0, 0.5, 0.999, 1) if routed else (None,):
        result = write(generator, [PROMPT] * rows, strategy=strategy, llm_fraction=fraction, seed=4)
        stats = result.stats
        assert json.loads(json.dumps(stats, allow_nan=False)) == stats
        if routed:
            assert f"Threshold: {stats['threshold']:.4g}" in result.summary


def test_full_text_keeps_special_tokens_however_the_prompt_is_given(
    generator: HybridGenerator,
) -> None:
    prompt = "<|endoftext|>def area"
    ids = generator.tokenizer(prompt)["input_ids"]
    assert ids[0] == 0
    text = write(generator, prompt).text
    for single in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert write(generator, single).full_text == prompt + text
    for several in ([prompt], (prompt,), np.array([prompt]), [ids], torch.tensor([ids])):
        assert write(generator, several).full_text == [prompt + text]
    mixed = write(generator, [ids, prompt, tuple(ids)], seed=[1, 1, 1])
    assert mixed.full_text == [prompt + text] * 3


def test_a_list_of_prompts_gives_lists(generator: HybridGenerator) -> None:
    prompts = [PROMPT, "the quick brown fox jumps", "größe"]
    result = write(generator, prompts, seed=5)
    assert [len(tokens) for tokens in result.tokens] == [
        row["total_tokens"] for row in result.stats["rows"]
    ]
    assert result.stats["total_tokens"] == sum(len(tokens) for tokens in result.tokens)
    assert [row["seed"] for row in result.stats["rows"]] == [5, 6, 7]
    for prompt, text, full in zip(prompts, result.text, result.full_text, strict=True):
        assert full == prompt + text


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 29])
def test_max_new_tokens_is_never_overrun(
    generator: HybridGenerator, strategy: str, count: int
) -> None:
    result = write(generator, strategy=strategy, max_new_tokens=count, ignore_eos=True)
    assert len(result.tokens) == result.stats["total_tokens"] == count


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("offset", range(12))
def test_eos_ends_everything_at_the_same_index(
    generator: HybridGenerator, strategy: str, offset: int
) -> None:
    """Whichever token of a block is the eos: an accepted draft, the one after it, any other."""
    free = write(generator, strategy=strategy, ignore_eos=True, verification="coupled").tokens
    eos = free[offset]
    expected = free[: free.index(eos) + 1]
    pieces: list[str] = []
    result = write(
        generator,
        strategy=strategy,
        verification="coupled",
        eos_token_id=eos,
        stream=pieces.append,
    )
    assert result.tokens == expected
    assert result.finish_reason == "eos"
    assert result.stats["total_tokens"] == len(expected)
    assert (
        "".join(pieces)
        == result.text
        == generator.tokenizer.decode(expected, skip_special_tokens=True)
    )


def whole_characters(text: str) -> list[str]:
    """Every three characters of the text in a row: a random model also writes parts of some."""
    parts = [text[i : i + 3] for i in range(len(text) - 2)]
    return [part for part in parts if "\ufffd" not in part]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("offset", range(0, 20, 3))
def test_a_stop_string_ends_everything_at_the_same_index(
    generator: HybridGenerator, strategy: str, offset: int
) -> None:
    options = {"strategy": strategy, "ignore_eos": True, "verification": "coupled"}
    free = write(generator, **options)
    stops = whole_characters(free.text)
    stop = stops[offset % len(stops)]
    pieces: list[str] = []
    result = write(generator, **options, stop=["never written", stop], stream=pieces.append)
    assert result.text == free.text[: free.text.index(stop)] == "".join(pieces)
    assert (result.finish_reason, free.finish_reason) == ("stop", "length")
    kept = len(result.tokens)
    assert result.tokens == free.tokens[:kept]
    assert stop in generator.tokenizer.decode(free.tokens[:kept])
    assert stop not in generator.tokenizer.decode(free.tokens[: kept - 1])
    assert result.stats["total_tokens"] == kept
    assert result.stats["slm_tokens"] + result.stats["llm_tokens"] == kept


def test_a_stop_string_ends_its_own_row_alone(generator: HybridGenerator) -> None:
    prompts = [PROMPT, "the quick brown fox"]
    free = write(generator, prompts, verification="coupled", ignore_eos=True)
    stop = next(part for part in whole_characters(free.text[0]) if part not in free.text[1])
    result = write(generator, prompts, verification="coupled", ignore_eos=True, stop=stop)
    assert result.text == [free.text[0][: free.text[0].index(stop)], free.text[1]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streamed_text_is_the_text(generator: HybridGenerator, strategy: str) -> None:
    pieces: list[str] = []
    result = write(generator, strategy=strategy, stream=pieces.append, temperature=2.0)
    assert "".join(pieces) == result.text
    assert len(pieces) > 1


def test_a_transformers_streamer_works(generator: HybridGenerator, capsys: Any) -> None:
    streamer = TextStreamer(generator.tokenizer, skip_prompt=True, skip_special_tokens=True)
    result = write(generator, stream=streamer, ignore_eos=True)
    assert capsys.readouterr().out.rstrip("\n") == result.text.rstrip("\n")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_repeats_and_another_differs(generator: HybridGenerator, strategy: str) -> None:
    first = write(generator, strategy=strategy, seed=11).tokens
    assert write(generator, strategy=strategy, seed=11).tokens == first
    assert write(generator, strategy=strategy, seed=12).tokens != first
    drawn = write(generator, strategy=strategy, seed=None)
    again = write(generator, strategy=strategy, seed=drawn.stats["seed"])
    assert again.tokens == drawn.tokens


def test_prompts_may_be_token_ids_or_a_chat(generator: HybridGenerator) -> None:
    ids = generator.tokenizer(PROMPT)["input_ids"]
    expected = write(generator).tokens
    assert write(generator, ids).tokens == expected
    assert write(generator, torch.tensor(ids)).tokens == expected
    chat = [{"role": "user", "content": "hello"}]
    templated = generator.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    assert write(generator, chat).tokens == write(generator, templated).tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_a_mask_names_changes_nothing(generator: HybridGenerator, side: str) -> None:
    prompts = [PROMPT, "x", "the quick brown fox"]
    batch = generator.tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
    expected = write(generator, prompts)
    found = write(generator, batch)
    assert found.tokens == expected.tokens
    assert found.full_text == expected.full_text
    assert found.stats["prompt_tokens"] == expected.stats["prompt_tokens"]
    assert write(generator, dict(batch)).tokens == expected.tokens
    with pytest.raises(ValueError, match=r"^prompt.*pad id.*attention_mask"):
        write(generator, batch["input_ids"])


def test_a_prompt_of_one_token(generator: HybridGenerator) -> None:
    for strategy in STRATEGIES:
        greedy = {"temperature": 0.0, "strategy": strategy}
        alone = write(generator, [7], **greedy).tokens
        assert write(generator, [[7], [9, 8, 7, 6]], **greedy).tokens[0] == alone


# Routing.


@pytest.mark.parametrize("strategy", ["uncertainty", "entropy"])
@pytest.mark.parametrize("consecutive", [1, 4])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_llm_fraction_is_reached(
    generator: HybridGenerator, strategy: str, consecutive: int, fraction: float
) -> None:
    result = write(
        generator,
        strategy=strategy,
        llm_fraction=fraction,
        llm_consecutive_tokens=consecutive,
        max_new_tokens=220,
        ignore_eos=True,
    )
    # 32 decisions off at the very worst (see `kernels.routing`), and far fewer where metrics mix.
    assert result.stats["llm_tokens"] / 220 == pytest.approx(fraction, abs=0.05)


def test_a_lower_threshold_asks_the_llm_more(generator: HybridGenerator) -> None:
    for strategy, thresholds in (("entropy", (0.0, 2.0, 9.0)), ("uncertainty", (0.0, 0.4, 2.0))):
        used = [
            write(generator, strategy=strategy, threshold=threshold, ignore_eos=True).stats
            for threshold in thresholds
        ]
        shares = [stats["slm_usage"] for stats in used]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert [stats["threshold"] for stats in used] == pytest.approx(thresholds)


def test_a_routed_token_is_the_llms_own(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token marked as the LLM's is what the LLM alone would write after that text."""
    seen: list[Text] = []
    row_stats = RoundStrategy.row_stats

    def spy(self: RoundStrategy, text: Text, *rest: Any) -> Any:
        seen.append(text)
        return row_stats(self, text, *rest)

    monkeypatch.setattr(RoundStrategy, "row_stats", spy)
    options = {"temperature": 0.0, "ignore_eos": True}
    for consecutive in (1, 3):
        result = write(
            generator,
            strategy="entropy",
            llm_fraction=0.3,
            llm_consecutive_tokens=consecutive,
            max_new_tokens=60,
            **options,
        )
        prompt = generator.tokenizer(PROMPT)["input_ids"]
        source = seen[-1].sources
        assert {SOURCE_SLM, SOURCE_LLM} == set(source)
        for i, (token, writer) in enumerate(zip(result.tokens, source, strict=True)):
            strategy = "llm" if writer == SOURCE_LLM else "slm"
            before = prompt + result.tokens[:i]
            after = write(generator, before, strategy=strategy, max_new_tokens=1, **options)
            assert after.tokens == [token]


# Pairs that differ.


@pytest.mark.parametrize("slm_vocab, llm_vocab", [(384, 512), (512, 384)])
def test_vocabularies_may_be_padded_differently(
    tiny_tokenizer: Any, slm_vocab: int, llm_vocab: int
) -> None:
    generator = HybridGenerator(
        random_model(slm_vocab, 1, 32, seed=1),
        random_model(llm_vocab, 2, 64, seed=2),
        tokenizer=tiny_tokenizer,
        device="cpu",
        dtype=torch.float32,
    )
    options = {"temperature": 1.5, "ignore_eos": True, "max_new_tokens": 60}
    for seed in range(5):
        alone = write(generator, strategy="llm", seed=seed, **options).tokens
        coupled = write(generator, verification="coupled", seed=seed, **options).tokens
        assert coupled == alone
        write(generator, seed=seed, **options)
        routed = write(generator, strategy="entropy", seed=seed, llm_fraction=0.5, **options)
        assert max(routed.tokens) < llm_vocab


def test_other_tokenizers_are_refused(tiny_pair: TinyPair, tmp_path: Path) -> None:
    other = save(random_model(300, 1, 32, seed=1), train_tokenizer(300), tmp_path / "other")
    with pytest.raises(ValueError, match=r"same tokenizer.*300 tokens.*384"):
        HybridGenerator(other, tiny_pair.llm, device="cpu")


def test_an_slm_of_shorter_context_is_refused_cleanly(
    tiny_pair: TinyPair, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    short = random_model(384, 1, 32, seed=1)
    short.config.max_position_embeddings = 64
    folder = save(short, tiny_tokenizer, tmp_path / "short")
    generator = HybridGenerator(folder, tiny_pair.llm, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="64"):
        write(generator, max_new_tokens=100)
    assert len(write(generator, strategy="llm", max_new_tokens=100, ignore_eos=True).tokens) == 100
    assert write(generator, max_new_tokens=20, ignore_eos=True).stats["total_tokens"] == 20


def test_a_recurrent_model_is_refused_by_name(tiny_pair: TinyPair, tiny_tokenizer: Any) -> None:
    config = MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match=r"(?i)mamba.*roll back"):
        HybridGenerator(MambaForCausalLM(config), tiny_pair.llm, tokenizer=tiny_tokenizer)
