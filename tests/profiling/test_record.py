"""What a profile holds is what the models said, and the text is the one without a profile."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TinyPair
from fake_graph import as_on_a_gpu
from test_detokenizer import llama
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from hybridgen import HybridGenerator
from hybridgen.detokenizer import new_text
from hybridgen.engine.model import Model
from hybridgen.fields import merged
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU, filter_logits
from hybridgen.kernels.uncertainty import EVIDENCE, entropy, logtoku
from hybridgen.parameters import FIELDS
from hybridgen.profiling import ProfileResult
from hybridgen.profiling.record import Recording, texts_of

BYTES_OF = {c: [f"<0x{byte:02X}>" for byte in c.encode()] for c in "日é"}
PROMPT = "def area(radius):\n"
PROMPTS = [PROMPT, "x", "for item in items:\n    print(item)\n", "日本語", "the quick brown fox"]
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
GREEDY = {"temperature": 0}
STRATEGIES: dict[str, dict[str, Any]] = {
    "slm": {"strategy": "slm"},
    "llm": {"strategy": "llm"},
    "uncertainty": {"strategy": "uncertainty", "threshold": 0.7},
    "uncertainty by logits": {"strategy": "uncertainty", "threshold": 2.2, "evidence": "logits"},
    "entropy, 5 consecutive": {
        "strategy": "entropy",
        "llm_fraction": 0.3,
        "llm_consecutive_tokens": 5,
    },
    "rejection": {"strategy": "speculative", "num_drafts": 4, "verification": "rejection"},
    "coupled": {"strategy": "speculative", "num_drafts": 7, "verification": "coupled"},
    "auto": {"strategy": "speculative"},
    "penalties": {"strategy": "speculative", "num_drafts": 3, "repetition_penalty": 1.3},
    "penalties, routed": {"strategy": "entropy", "threshold": 2.0, "suppress_tokens": [5, 60]},
}
modes = pytest.mark.parametrize("mode", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
strategies = pytest.mark.parametrize("name", STRATEGIES)


def made(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(
        *tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=2, max_seq_len=200
    )


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return made(tiny_pair)


@pytest.fixture(scope="module")
def alone(tiny_pair: TinyPair) -> HybridGenerator:
    """Without an SLM: drafts are looked up."""
    return HybridGenerator(
        llm_model_id=tiny_pair.llm, device="cpu", dtype=torch.float32, max_seq_len=200
    )


@pytest.fixture(scope="module")
def itself(tiny_pair: TinyPair) -> HybridGenerator:
    """Drafts that are mostly accepted."""
    return HybridGenerator(tiny_pair.llm, tiny_pair.llm, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def captured(tiny_pair: TinyPair) -> HybridGenerator:
    """Its rounds are replayed as on a GPU."""
    generator = made(tiny_pair)
    as_on_a_gpu(generator.pair)
    return generator


@pytest.fixture(params=["generator", "captured"])
def recorder(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def given(options: dict[str, Any]) -> dict[str, Any]:
    return {"max_new_tokens": 24, "seed": 3, "ignore_eos": True, **options}


def profile(generator: HybridGenerator, prompt: Any = PROMPT, **options: Any) -> ProfileResult:
    return generator.generate_with_profile(prompt, **given(options))


def write(generator: HybridGenerator, prompt: Any = PROMPT, **options: Any) -> Any:
    return generator.generate(prompt, print_stats=False, **given(options))


def ids(profiled: ProfileResult) -> list[int]:
    return [token.token_id for token in profiled.tokens]


def logits_after(model: Model, prefix: Sequence[int]) -> Tensor:
    """[1, V]."""
    tokens = torch.tensor([[*prefix]])
    model.prefill(tokens[:, :-1], [len(prefix) - 1])
    return model(tokens[:, -1:], torch.tensor([len(prefix) - 1]))[0]


# The text is the same.


@strategies
@modes
def test_the_text_is_that_of_generate(
    generator: HybridGenerator, name: str, mode: dict[str, Any]
) -> None:
    options = {**STRATEGIES[name], **mode}
    result, found = write(generator, **options), profile(generator, **options)
    assert ids(found) == result.tokens
    assert found.generated_text == result.text == "".join(t.token_text for t in found.tokens)
    assert [t.position for t in found.tokens] == [*range(24)]
    same = {k for k in result.stats if not k.endswith(("time", "second", "strategy"))}
    if name != "auto":  # whose choices are by time
        assert {k: found.stats[k] for k in same} == {k: result.stats[k] for k in same}


@strategies
@modes
def test_so_are_those_of_several_rows(
    generator: HybridGenerator, recorder: HybridGenerator, name: str, mode: dict[str, Any]
) -> None:
    """More prompts than rows, so that rows are refilled; captured as on a GPU, and eager."""
    options = given({**STRATEGIES[name], **mode})
    expected = generator.generate(PROMPTS, print_stats=False, **options)
    strategy: Any = recorder.strategies[options["strategy"]]
    every = {f.name: f.default for f in merged(FIELDS, strategy.declaration.options)} | options
    with recorder.pair.turn(), torch.inference_mode():
        request = recorder._checked(strategy, PROMPTS, every, {})
        for _ in range(2):  # the second time, what was captured is there
            found = strategy.run(recorder.pair, request, recorder.tokenizer, Recording(strategy))
            assert found.tokens == expected.tokens


# The numbers are what the models say.


@strategies
@modes
def test_the_numbers_are_what_the_references_say(
    generator: HybridGenerator, recorder: HybridGenerator, name: str, mode: dict[str, Any]
) -> None:
    options = {**STRATEGIES[name], **mode}
    for _ in range(2):  # the second time, what was captured is replayed
        found = profile(recorder, **options)
    model = generator.llm if name == "llm" else generator.slm
    assert found.measured_by == ("llm" if name == "llm" else "slm")
    banned = options.get("suppress_tokens", [])
    penalty = options.get("repetition_penalty", 1.0)
    evidence = options.get("evidence", "probs")
    unmeasured = check_numbers(generator, model, found, evidence, banned, penalty)
    assert unmeasured == 0 or name == "auto"


def check_numbers(
    generator: HybridGenerator,
    model: Model,
    found: ProfileResult,
    evidence: str,
    banned: Sequence[int] = (),
    penalty: float = 1.0,
) -> int:
    """Compare each measured token with the references; how many were not measured."""
    prompt, tokens, unmeasured = generator.tokenizer(PROMPT)["input_ids"], ids(found), 0
    for i, token in enumerate(found.tokens):
        if token.entropy is None:
            assert token.aleatoric_uncertainty is None and token.top_k_ids == ()
            unmeasured += 1
            continue
        logits = logits_after(model, prompt + tokens[:i])
        logits[:, [*banned]] = -torch.inf
        seen = torch.tensor([prompt + tokens[:i]])
        logits = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits)
        expected = entropy(logits, torch.ones(1, dtype=torch.float64))
        au, eu = logtoku(logits, 10, EVIDENCE[evidence])
        assert token.entropy == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
        assert token.aleatoric_uncertainty == pytest.approx(float(au), rel=1e-4, abs=1e-5)
        assert token.epistemic_uncertainty == pytest.approx(float(eu), rel=1e-4)
        probs = logits.double().softmax(1)[0]
        assert token.top_k_probs == pytest.approx(
            probs.topk(10).values.tolist(), rel=1e-4, abs=1e-6
        )
        assert probs[[*token.top_k_ids]].tolist() == pytest.approx(token.top_k_probs, rel=1e-3)
        assert token.top_k_texts == tuple(generator.tokenizer.decode([i]) for i in token.top_k_ids)
    return unmeasured


def probability_of(generator: HybridGenerator, logits: Tensor, token: int, mode: Any) -> float:
    """In the filtered distribution."""
    if not mode["temperature"]:
        return float(token == int(logits.argmax()))
    columns = [mode["temperature"], mode["top_k"], mode["top_p"], 0.0]
    truncation = filter_logits(logits, torch.tensor([columns], dtype=torch.float64))[0]
    logit = float(logits[0, token])
    if logit < float(truncation[TAU]):
        return 0.0
    score = (logit - float(truncation[LARGEST])) / mode["temperature"]
    return float(torch.tensor(score - float(truncation[LOG_Z])).exp())


@modes
@pytest.mark.parametrize("name", ["rejection", "coupled", "auto"])
@pytest.mark.parametrize("who", ["generator", "alone", "itself"])
def test_drafts_are_what_was_proposed(
    request: pytest.FixtureRequest, name: str, mode: Any, who: str
) -> None:
    writer = request.getfixturevalue(who)
    found = profile(writer, **{**STRATEGIES[name], **mode}, max_new_tokens=60)
    prompt, tokens = writer.tokenizer(PROMPT)["input_ids"], ids(found)
    accepted = rejected = 0
    for i, token in enumerate(found.tokens):
        if token.accepted is None:
            assert (token.model_used, token.p, token.q) == ("llm", None, None)
            assert token.rejected_id is None
            continue
        assert token.accepted == (token.model_used != "llm") == (token.rejected_id is None)
        accepted, rejected = accepted + token.accepted, rejected + (not token.accepted)
        draft = token.token_id if token.accepted else token.rejected_id
        assert draft is not None
        if not token.accepted:
            assert token.rejected_text == writer.tokenizer.decode([draft])
        before = prompt + tokens[:i]
        for model, value in ((writer.llm, token.p), (writer.slm, token.q)):
            if model is not None and value is not None:
                expected = probability_of(writer, logits_after(model, before), draft, mode)
                assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert token.p is not None
        assert (token.q is None) == (token.model_used == "lookup") or not token.accepted
        assert token.q is None or who != "alone"
    assert accepted == found.stats["draft_accepted"]
    assert accepted > rejected or who != "itself" or name == "auto"
    assert 0 < rejected <= found.stats["decode_steps"] or who == "itself" or name == "auto"


@modes
def test_without_an_slm_the_llm_measures(alone: HybridGenerator, mode: Any) -> None:
    for options in ({"num_drafts": 5}, {}):
        found = profile(alone, strategy="speculative", **options, **mode)
        assert found.measured_by == "llm"
        assert check_numbers(alone, alone.llm, found, "probs") == 0


@pytest.mark.parametrize("metric", ["uncertainty", "entropy"])
def test_a_token_is_the_llms_where_its_metric_was_above_the_threshold(
    generator: HybridGenerator, metric: str
) -> None:
    middle = profile(generator, strategy="slm", **SAMPLED).suggest_threshold(0.5, metric)
    found = profile(generator, routing_metric=metric, threshold=middle, **SAMPLED)
    assert found.metric == metric and found.threshold == pytest.approx(middle)
    for token in found.tokens:
        value = token.value(metric)
        assert value is not None and (value > middle) == (token.model_used == "llm")
    assert {token.model_used for token in found.tokens} == {"slm", "llm"}


# What a text's end cuts off, nobody counts.


@strategies
def test_tokens_end_with_an_eos(generator: HybridGenerator, name: str) -> None:
    options = {**STRATEGIES[name], **SAMPLED, "verification": "coupled"}
    eos = write(generator, **options).tokens[11]
    options |= {"eos_token_id": eos, "ignore_eos": False}
    found, result = profile(generator, **options), write(generator, **options)
    assert ids(found) == result.tokens and ids(found)[-1] == eos
    check_counts(found)


@strategies
def test_tokens_end_with_a_stop_string(generator: HybridGenerator, name: str) -> None:
    options = {**STRATEGIES[name], **SAMPLED, "verification": "coupled"}
    text = write(generator, **options).text
    whole = [text[i : i + 3] for i in range(9, 20) if "\ufffd" not in text[i : i + 3]]
    options["stop"] = whole[:1]
    found, result = profile(generator, **options), write(generator, **options)
    assert ids(found) == result.tokens and found.generated_text == result.text
    assert whole[0] not in found.generated_text
    assert "".join(t.token_text for t in found.tokens).startswith(result.text + whole[0])
    check_counts(found)


def check_counts(found: ProfileResult) -> None:
    used = found.model_usage
    assert sum(used.values()) == len(found.tokens) == found.stats["total_tokens"] < 24
    assert used["slm"] == found.stats["slm_tokens"]
    assert used["llm"] == found.stats["llm_tokens"]


def test_a_character_of_several_tokens_is_its_last_ones(generator: HybridGenerator) -> None:
    options = {"strategy": "slm", "temperature": 3.0, "max_new_tokens": 150}
    found = profile(generator, **options)
    assert "".join(t.token_text for t in found.tokens) == found.generated_text
    shown = [t.token_text for t in found.tokens[:-1]]
    assert "" in shown and any(len(text.encode()) > 1 and len(text) == 1 for text in shown)


def test_a_profile_forgets_the_call_before(generator: HybridGenerator) -> None:
    """Prompts of other lengths, shorter and longer, over the same buffers."""
    options = {"strategy": "speculative", "num_drafts": 4, **SAMPLED}
    first = profile(generator, **options)
    profile(generator, PROMPTS[2] * 3, **options)
    assert profile(generator, "x", **options).stats["prompt_tokens"] == 1
    again = profile(generator, **options)
    assert again.tokens == first.tokens
    assert replace(again, stats={}) == replace(first, stats={})


def test_a_character_of_byte_tokens_is_its_last_ones_too() -> None:
    """Whose text the detokenizer holds back until the run of bytes is over."""
    tokenizer = llama()
    written = ["a", *BYTES_OF["日"], *BYTES_OF["é"], "b", *BYTES_OF["日"][:2]]
    ids = tokenizer.convert_tokens_to_ids(written)
    prompt = tokenizer.convert_tokens_to_ids(["▁Hello"])
    found = texts_of(tokenizer, prompt, ids)
    assert found[:7] == ["a", "", "", "日", "", "é", "b"]
    assert "".join(found) == new_text(tokenizer, prompt, ids)
    assert texts_of(tokenizer, prompt, []) == []
