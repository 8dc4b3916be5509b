"""What grows through the doors: a strategy with an option and a proposer, a file each."""

import re
from typing import Any

import pytest
import torch
from conftest import TinyPair
from fake_cuda import dry_run
from table_decoder import TableDecoder, enumerate_law, loaded, p_value, random_table, sample_law
from toy_proposer import Lookup, lookup
from toy_strategy import Relay, relay_round

from hybridgen import HybridGenerator
from hybridgen.cli import build_parser, main
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Repeat
from hybridgen.result import GenerationResult
from hybridgen.strategies.declarations import BUILT_IN
from hybridgen.strategies.drafts import speculative_round

PROMPT = "def area(radius):\n"


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    made = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    made.strategies |= {"relay": Relay(), "lookup": lookup()}
    return made


def write(generator: HybridGenerator, prompt: Any = PROMPT, **options: Any) -> GenerationResult:
    settings = {"max_new_tokens": 24, "temperature": 0.9, "seed": 1, "print_stats": False}
    return generator.generate(prompt, **{"ignore_eos": True, **settings, **options})


# --- a strategy with one option ---


def test_the_option_is_checked(generator: HybridGenerator) -> None:
    with pytest.raises(ValueError, match=r"^period must be an integer from 2 to 16, got 17"):
        write(generator, strategy="relay", period=17)
    with pytest.raises(TypeError, match=r"^period must be an integer from 2 to 16, got '4'"):
        write(generator, strategy="relay", period="4")


def test_the_option_has_its_default_and_its_effect(generator: HybridGenerator) -> None:
    default = write(generator, strategy="relay")
    assert default.tokens == write(generator, strategy="relay", period=4).tokens
    assert default.tokens != write(generator, strategy="relay", period=2).tokens
    for period in (2, 3, 8):
        assert write(generator, strategy="relay", period=period).stats["llm_tokens"] == 24 // period


def test_the_option_is_in_the_statistics_of_a_row_and_of_a_batch(
    generator: HybridGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(generator, strategy="relay", period=3).stats["period"] == 3
    stats = write(generator, [PROMPT, "x"], strategy="relay", period=3, print_stats=True).stats
    assert stats["period"] == 3
    assert [row["period"] for row in stats["rows"]] == [3, 3]
    assert "\nPeriod: 3\n" in capsys.readouterr().out


def test_the_error_that_lists_known_arguments_lists_it(generator: HybridGenerator) -> None:
    with pytest.raises(TypeError, match=r"'perod' \(did you mean 'period'\?\)") as caught:
        write(generator, strategy="relay", perod=3)
    assert re.search(r"accepts prompt, .*, period\b", str(caught.value))
    with pytest.raises(TypeError, match="unexpected argument 'period'") as caught:
        write(generator, strategy="llm", period=3)
    assert not re.search(r"accepts .*period", str(caught.value))


def test_help_lists_it() -> None:
    shown = build_parser([*BUILT_IN, Relay.declaration]).format_help()
    assert re.search(r"--period N\s+.*the LLM writes every\s+N-th token", shown)
    assert "relay" in shown
    assert "--period" not in build_parser().format_help()


def test_the_command_runs_it(tiny_pair: TinyPair, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--slm", str(tiny_pair.slm), "--llm", str(tiny_pair.llm), "--seed", "1"]
    settings = ["--max-new-tokens", "12", "--strategy", "relay", "--period"]
    assert main([PROMPT, *models, *settings, "3"], strategies={"relay": Relay()}) == 0
    assert "Period: 3" in capsys.readouterr().err
    assert main([PROMPT, *models, *settings, "1"], strategies={"relay": Relay()}) == 1
    assert "period must be an integer from 2 to 16" in capsys.readouterr().err


def test_it_streams_and_stops_as_the_built_in_ones_do(generator: HybridGenerator) -> None:
    free, pieces = write(generator, strategy="relay").text, []
    stop = free[8:11]
    result = write(generator, strategy="relay", stop=stop, stream=pieces.append)
    assert result.text == free[: free.index(stop)] == "".join(pieces)


# --- a proposer ---


@pytest.mark.parametrize("num_drafts", [1, 4, 15])
def test_whoever_drafts_the_text_is_the_llms(generator: HybridGenerator, num_drafts: int) -> None:
    """Its drafts come from nowhere: they are verified by coupling, whatever was asked for."""
    prompts = [PROMPT, "for item in items:\n    print(item)\nfor item in", "x"]
    alone = write(generator, prompts, strategy="llm").tokens
    for verification in ("coupled", "rejection"):
        found = write(
            generator,
            prompts,
            strategy="lookup",
            num_drafts=num_drafts,
            verification=verification,
        )
        assert found.tokens == alone
        assert found.stats["verification"] == "coupled"
        assert found.stats["strategy"] == "lookup"


def test_a_text_that_repeats_is_found_in_itself() -> None:
    """Each token follows the one below it, around the vocabulary: every draft is accepted."""
    successor = torch.eye(5).roll(1, 1).expand(5, 5, 5) * 9
    prompt, greedy = [0, 1, 2, 3, 4, 0], (0.0, 0, 1.0, 0.0)
    batch = loaded(TableDecoder(successor), TableDecoder(successor), [prompt], 40, greedy)
    round_ = batch.round(speculative_round, Lookup(), 4, False)
    for length in (11, 16, 21):
        round_()
        assert int(batch.rows.length) == length
        assert batch.rows.tokens[0, :length].tolist() == [i % 5 for i in range(length)]


def test_a_proposer_that_asks_no_slm_lets_it_rest(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("the SLM was asked")

    expected = write(generator, strategy="lookup").tokens
    with monkeypatch.context() as patch:
        patch.setattr(generator.slm, "prefill", fail)
        patch.setattr(generator.slm, "_logits", fail)
        assert write(generator, strategy="lookup").tokens == expected


def test_the_law_is_the_llms_whoever_drafts() -> None:
    prompt, depth, sampling = [1, 0, 1], 3, (0.9, 0, 0.9, 0.0)
    tables = random_table(5, seed=1), random_table(5, seed=0)
    batch = loaded(*map(TableDecoder, tables), [prompt] * 20_000, depth, sampling)
    program = Repeat(batch.round(speculative_round, Lookup(), 3, False))
    observed = sample_law(batch, program, prompt, depth, 5)
    assert p_value(observed, enumerate_law(tables[1], prompt, depth, sampling)) > 1e-4


@pytest.mark.skipif(torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build")
def test_both_never_touch_the_host() -> None:
    from conftest import random_model

    slm, llm = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    decoders = Decoder.from_model(slm), Decoder.from_model(llm)
    assert dry_run(decoders, 2, lambda batch: batch.round(relay_round, 4)()) > 0
    propose = (speculative_round, Lookup(), 4, False)
    assert dry_run(decoders, 2, lambda batch: batch.round(*propose)()) > 0


def test_a_tensor_of_ones_own_is_made_once(generator: HybridGenerator) -> None:
    batch = generator.pair.batch(1)

    def counts(batch: Any) -> torch.Tensor:
        return torch.zeros_like(batch.rows.length)

    assert batch.own(counts) is batch.own(counts)
