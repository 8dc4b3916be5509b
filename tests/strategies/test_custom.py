"""A strategy of a user's own gets what the built-in ones have: stops, streams, limits, tokens."""

from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TinyPair

from hybridgen import GenerationStrategy, HybridGenerator
from hybridgen.fields import Field, integer
from hybridgen.strategies.declarations import Declaration
from hybridgen.utils import new_text, sample_token

PROMPT = "def area(radius):\n"


def llm_tokens(llm: Any, request: Any, row: int = 0) -> Iterator[int]:
    """The LLM's own tokens for the seed, token by token, without end."""
    ids = list(request.prompt_ids[row])
    while True:
        for first in range(0, len(ids), 16):
            part = torch.tensor([ids[first : first + 16]])
            logits = llm(part, torch.tensor([first]))
        place = len(ids)
        ids.append(sample_token(logits[0, -1], *request.sampling, request.seed[row], place))
        yield ids[-1]


class Whole(GenerationStrategy):
    """Returns the LLM's text, made by `new_text`: more of it than was asked for."""

    def generate(self, llm: Any, tokenizer: Any, request: Any, **rest: Any) -> Any:
        texts = []
        for row, prompt in enumerate(request.prompt_ids):
            tokens = llm_tokens(llm, request, row)
            new = [next(tokens) for _ in range(request.max_new_tokens + 3)]
            texts.append(new_text(tokenizer, prompt, new))
        return (texts if request.rows > 1 else texts[0]), {"strategy": "mine"}


class Told(Whole):
    """Returns a plain text, and tells its tokens in the statistics."""

    def generate(self, **everything: Any) -> Any:
        text, stats = super().generate(**everything)
        several = isinstance(text, list)
        tokens = [row.tokens for row in text] if several else text.tokens
        return ([str(row) for row in text] if several else str(text)), {**stats, "tokens": tokens}


class Yielding(GenerationStrategy):
    """Yields the LLM's tokens, and says so when it is told that the text is complete."""

    def generate(self, llm: Any, request: Any, **rest: Any) -> Generator[Any, bool, Any]:
        rows = [llm_tokens(llm, request, row) for row in range(request.rows)]
        steps = 0
        while True:
            steps += 1
            step = [next(tokens) for tokens in rows]
            if (yield step if request.rows > 1 else step[0]):
                return {"decode_steps": steps}


class Endless(Yielding):
    """Does not listen."""

    def generate(self, llm: Any, request: Any, **rest: Any) -> Generator[Any, bool, Any]:
        yield from llm_tokens(llm, request)


FORMS = {"whole": Whole(), "told": Told(), "yielding": Yielding(), "endless": Endless()}
BATCHES = ["whole", "told", "yielding"]


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    made = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    made.strategies.update(FORMS)
    return made


def write(generator: HybridGenerator, strategy: str, prompt: Any = PROMPT, **options: Any) -> Any:
    settings = {"max_new_tokens": 20, "temperature": 0.9, "seed": 1, "print_stats": False}
    return generator.generate(prompt, strategy, **{**settings, **options})


@pytest.mark.parametrize("form", FORMS)
def test_tokens_text_and_full_text_are_those_of_the_llm(
    generator: HybridGenerator, form: str
) -> None:
    """Byte-level tokens of a random model hold halves of characters: no text encodes back."""
    for seed in range(5):
        expected = write(generator, "llm", seed=seed, ignore_eos=True)
        found = write(generator, form, seed=seed, ignore_eos=True)
        assert found.tokens == expected.tokens
        assert (found.text, found.full_text) == (expected.text, expected.full_text)
        assert found.stats["total_tokens"] == len(found.tokens) == 20


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_limit_holds(generator: HybridGenerator, form: str, count: int) -> None:
    found = write(generator, form, max_new_tokens=count, ignore_eos=True)
    assert len(found.tokens) == found.stats["total_tokens"] == count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset", range(0, 12, 3))
def test_an_eos_ends_it(generator: HybridGenerator, form: str, offset: int) -> None:
    free = write(generator, "llm", ignore_eos=True).tokens
    eos = free[offset]
    found = write(generator, form, eos_token_id=eos)
    assert found.tokens == free[: free.index(eos) + 1]
    assert found.finish_reason == "eos"


def parts(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(len(text) - 2) if "\ufffd" not in text[i : i + 3]]


@pytest.mark.parametrize("form", FORMS)
def test_a_stop_string_ends_text_tokens_and_stream(generator: HybridGenerator, form: str) -> None:
    free = write(generator, "llm", ignore_eos=True)
    for stop in parts(free.text)[::3]:
        expected = write(generator, "llm", ignore_eos=True, stop=stop)
        pieces: list[str] = []
        found = write(generator, form, ignore_eos=True, stop=stop, stream=pieces.append)
        assert (found.text, found.tokens) == (expected.text, expected.tokens)
        assert "".join(pieces) == found.text
        assert found.stats["total_tokens"] == len(found.tokens)


@pytest.mark.parametrize("form", ["yielding", "endless"])
def test_what_is_yielded_is_streamed_at_once(generator: HybridGenerator, form: str) -> None:
    expected: list[str] = []
    write(generator, "llm", ignore_eos=True, stream=expected.append)
    pieces: list[str] = []
    write(generator, form, ignore_eos=True, stream=pieces.append)
    assert pieces == expected
    assert len(pieces) > 5


@pytest.mark.parametrize("form", FORMS)
def test_a_transformers_streamer_gets_prompt_tokens_and_end(
    generator: HybridGenerator, form: str
) -> None:
    seen: list[Any] = []
    streamer = SimpleNamespace(
        put=lambda x: seen.append(x.tolist()), end=lambda: seen.append("end")
    )
    found = write(generator, form, ignore_eos=True, stream=streamer)
    prompt = generator.tokenizer(PROMPT)["input_ids"]
    assert seen == [[prompt], *([token] for token in found.tokens), "end"]


@pytest.mark.parametrize("form", BATCHES)
def test_several_prompts_have_a_text_each(generator: HybridGenerator, form: str) -> None:
    prompts = [PROMPT, "größe", "x"]
    expected = write(generator, "llm", prompts, ignore_eos=True)
    found = write(generator, form, prompts, ignore_eos=True)
    assert (found.tokens, found.text) == (expected.tokens, expected.text)
    assert found.stats["seed"] == [1, 2, 3]
    assert write(generator, form, [PROMPT]).text == [write(generator, form).text]


def test_one_text_for_several_prompts_is_refused(generator: HybridGenerator) -> None:
    generator.strategies["odd"] = Returns()
    with pytest.raises(ValueError, match=r"strategies\['odd'\] returned 1 texts for 2 prompts"):
        write(generator, "odd", [PROMPT, "x"], outcome=("a", {}))
    with pytest.raises(ValueError, match=r"strategies\['odd'\] told the tokens of 1 texts for 2"):
        write(generator, "odd", [PROMPT, "x"], outcome=(["a", "b"], {"tokens": [[5]]}))


def test_statistics_are_its_own_and_those_of_every_strategy(generator: HybridGenerator) -> None:
    stats = write(generator, "yielding", ignore_eos=True).stats
    assert stats["decode_steps"] == 20
    assert stats["strategy"] == "yielding"
    assert stats["tokens_per_second"] == pytest.approx(20 / stats["elapsed_time"])
    assert (stats["prompt_tokens"], stats["seed"]) == (
        len(generator.tokenizer(PROMPT).input_ids),
        1,
    )
    assert write(generator, "whole").stats["strategy"] == "mine"


def test_statistics_may_be_anything(generator: HybridGenerator, capsys: Any) -> None:
    generator.strategies["odd"] = Returns()
    odd = {"total_tokens": None, "slm_tokens": object(), "threshold": "high", "seed": None}
    for prompt, text in (("x", "a"), (["x"], "a"), (["x", "y"], ["a", "b"])):
        stats = write(generator, "odd", prompt, outcome=(text, odd), print_stats=True).stats
        assert {name: stats[name] for name in odd} == odd
        assert "Strategy: odd" in capsys.readouterr().out


def test_a_strategy_that_does_not_listen_is_closed(generator: HybridGenerator) -> None:
    closed = []

    class Careful(GenerationStrategy):
        def generate(self, llm: Any, request: Any, **rest: Any) -> Any:
            try:
                yield from llm_tokens(llm, request)
            finally:
                closed.append(True)

    generator.strategies["careful"] = Careful()
    write(generator, "careful", max_new_tokens=3)
    assert closed == [True]


def test_tokens_may_be_yielded_from_anywhere(generator: HybridGenerator) -> None:
    class Listed(GenerationStrategy):
        def generate(self, request: Any, **rest: Any) -> Any:
            assert (yield 5) is (True if request.max_new_tokens == 1 else None)
            yield from [6, 7]
            yield from self.deeper()
            return {"decode_steps": 9}

        def deeper(self) -> Any:
            yield from (8, 9)

    generator.strategies["listed"] = Listed()
    for count in range(1, 8):
        found = write(generator, "listed", max_new_tokens=count, ignore_eos=True)
        assert found.tokens == [5, 6, 7, 8, 9][:count]
        assert ("decode_steps" in found.stats) == (count > 5)


class Parrot(GenerationStrategy):
    def generate(self, slm: Any, llm: Any, tokenizer: Any, prompt: Any, **kwargs: Any) -> Any:
        return prompt * kwargs["times"], {"strategy": "parrot", "total_tokens": 2}


def test_a_text_whose_tokens_nobody_knows_is_the_text(
    generator: HybridGenerator, capsys: Any
) -> None:
    generator.strategies["parrot"] = Parrot()
    found = generator.generate("abc", "parrot", times=2)
    assert (found.text, found.full_text) == ("abcabc", "abcabcabc")
    assert found.tokens == generator.tokenizer("abcabc")["input_ids"]
    assert found.stats["total_tokens"] == 2
    assert found.finish_reason == "end"
    assert "Strategy: parrot" in capsys.readouterr().out
    pieces: list[str] = []
    cut = write(generator, "parrot", "abc", times=2, stop="ca", stream=pieces.append)
    assert cut.text == "".join(pieces) == "ab"
    assert cut.tokens == generator.tokenizer("ab")["input_ids"]
    assert cut.stats["total_tokens"] == len(cut.tokens)
    short = write(generator, "parrot", "abc", times=9, max_new_tokens=2)
    assert len(short.tokens) == 2
    assert (cut.finish_reason, short.finish_reason) == ("stop", "length")
    assert short.text != "abc" * 9 and ("abc" * 9).startswith(short.text)


def test_the_built_in_ones_take_no_keyword_of_its(generator: HybridGenerator) -> None:
    with pytest.raises(TypeError, match="times"):
        generator.generate("ab", times=2)
    with pytest.raises(ValueError, match="speculative"):
        generator.generate("ab", "nobody")


class Declared(GenerationStrategy):
    declaration = Declaration(
        "declared",
        "repeats the prompt",
        (Field("times", 2, integer(1, 9), "how often the prompt is repeated"),),
        lines=("Times: {times}",),
    )

    def generate(self, prompt: Any, request: Any, times: int, **rest: Any) -> Any:
        assert request.times == times
        return prompt * times, {"times": times}


def test_declared_options_are_checked_and_printed(generator: HybridGenerator, capsys: Any) -> None:
    generator.strategies["declared"] = Declared()
    assert generator.generate("ab", "declared").text == "abab"
    assert "Times: 2" in capsys.readouterr().out
    assert write(generator, "declared", "ab", times=3).text == "ababab"
    with pytest.raises(ValueError, match=r"^times must be an integer from 1 to 9, got 10"):
        write(generator, "declared", "ab", times=10)
    with pytest.raises(TypeError, match=r"did you mean 'times'"):
        write(generator, "declared", "ab", tims=3)


class Returns(GenerationStrategy):
    def generate(self, outcome: Any, **rest: Any) -> Any:
        return outcome


class Yields(GenerationStrategy):
    def generate(self, outcome: Any, **rest: Any) -> Any:
        yield outcome


@pytest.mark.parametrize(
    "outcome", [None, "text", ("text",), (5, {}), ("text", None), (["a", 5], {})]
)
def test_what_it_must_not_return(generator: HybridGenerator, outcome: Any) -> None:
    generator.strategies["odd"] = Returns()
    with pytest.raises(TypeError, match=r"strategies\['odd'\] must return \(text, stats\)"):
        write(generator, "odd", outcome=outcome)


@pytest.mark.parametrize("outcome", [None, "text", 1.0, True, -1, 384, [1, 2]])
def test_what_it_must_not_yield(generator: HybridGenerator, outcome: Any) -> None:
    generator.strategies["odd"] = Yields()
    if outcome is None:
        assert write(generator, "odd", outcome=outcome).tokens == []
        return
    with pytest.raises((TypeError, ValueError), match=r"^strategies\['odd'\] yielded"):
        write(generator, "odd", outcome=outcome)


def test_a_strategy_must_be_one(generator: HybridGenerator) -> None:
    generator.strategies["class"] = Parrot  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"strategies\['class'\] must be a GenerationStrategy"):
        write(generator, "class", times=1)
    del generator.strategies["class"]


def test_an_unknown_argument_of_one_that_declares_lists_what_is_known(
    generator: HybridGenerator,
) -> None:
    generator.strategies["declared"] = Declared()
    with pytest.raises(TypeError, match=r"'window'; it accepts prompt, .*, times$"):
        write(generator, "declared", window=2)
    with pytest.raises(TypeError, match=r"'times'; it accepts .* print_stats$"):
        write(generator, "llm", times=3)


class Drafty(GenerationStrategy):
    def generate(self, *arguments: Any, **options: Any) -> Any:
        return "", {"draft_generated": 4, "draft_accepted": 3, "acceptance_rate": 0.75}


def test_the_block_of_one_that_declares_nothing_has_the_lines_that_are_known(
    generator: HybridGenerator, capsys: Any
) -> None:
    generator.strategies["drafty"] = Drafty()
    generator.generate("ab", "drafty")
    out = capsys.readouterr().out
    assert "\nStrategy: drafty\n" in out
    assert "\nDraft tokens: 4, Accepted: 3, Acceptance rate: 75.00%\n" in out
    assert "Threshold" not in out and "SLM tokens" not in out
