"""vLLM and SGLang are called by the names that their releases have: recorded, for want of a card.

`peer_signatures.json` holds the parameters of the classes that are called, as read from the
sources of vLLM 0.33.0 and SGLang 0.5.23.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hybridgen.benchmarks.contender import Contender, Pair, Place, Work
from hybridgen.benchmarks.peers import card
from hybridgen.benchmarks.peers.table import peer

SIGNATURES = json.loads((Path(__file__).parent / "peer_signatures.json").read_text())
PLACE = Place("cuda:0", "bfloat16", 1)
GREEDY = Work([[1, 2], [3]], 5, {"temperature": 0.0}, 7)
SAMPLED = Work([[1, 2]], 5, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, 7)
UNFILTERED = Work([[1, 2]], 5, {"temperature": 1.0}, 7)


def known(package: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What was given, once each name is one that the release has."""
    if strange := set(given) - set(SIGNATURES[package][name]):
        raise TypeError(f"{package} {name} takes no {strange}")
    return given


class FakeLLM:
    def __init__(self, **given: Any) -> None:
        self.given = known("vllm", "LLM", given)
        known("vllm", "speculative_config", given.get("speculative_config", {}))
        self.calls: list[Any] = []
        self.closed = 0
        core = SimpleNamespace(shutdown=self._shutdown)
        self.llm_engine = SimpleNamespace(engine_core=core)

    def _shutdown(self) -> None:
        self.closed += 1

    def generate(self, prompts: Any, params: Any, **given: Any) -> Any:
        known("vllm", "LLM.generate", given)
        self.calls.append(params)
        output = SimpleNamespace(token_ids=tuple(range(params["max_tokens"])))
        return [SimpleNamespace(outputs=[output]) for _ in prompts]


class FakeEngine:
    def __init__(self, **given: Any) -> None:
        self.given = known("sglang", "Engine", given)
        self.calls: list[Any] = []
        self.closed = 0

    def generate(self, **given: Any) -> Any:
        params = known(
            "sglang",
            "sampling_params",
            known("sglang", "Engine.generate", given)["sampling_params"],
        )
        self.calls.append(params)
        return [{"output_ids": list(range(params["max_new_tokens"]))} for _ in given["input_ids"]]

    def shutdown(self) -> None:
        self.closed += 1


@pytest.fixture
def pair(tiny_pair: Any) -> Pair:
    return Pair("tiny", str(tiny_pair.slm), str(tiny_pair.llm), "random")


@pytest.fixture(params=["vllm", "sglang"])
def contenders(
    request: pytest.FixtureRequest, pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[Contender]:
    vllm, sglang = ModuleType("vllm"), ModuleType("sglang")
    vllm.LLM = FakeLLM  # type: ignore[attr-defined]
    for name in ("SamplingParams", "TokensPrompt"):
        setattr(vllm, name, lambda name=name, **given: known("vllm", name, given))
    sglang.Engine = FakeEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "sglang", sglang)
    monkeypatch.setattr(card, "memory", lambda device: card.Memory(60 << 30, 80 << 30))
    return list(peer(request.param).contenders(pair, PLACE, tmp_path, 2))


def engine(contender: Any) -> Any:
    return contender._llm if hasattr(contender, "_llm") else contender._engine


def test_calls_use_names_of_the_release(contenders: list[Contender]) -> None:
    for contender in contenders:
        assert contender.write(GREEDY).tokens == [[0, 1, 2, 3, 4]] * 2
        contender.write(SAMPLED)
        contender.write(UNFILTERED)
        greedy, sampled, unfiltered = engine(contender).calls
        assert greedy["temperature"] == 0.0 and greedy["ignore_eos"] is True
        assert (sampled["temperature"], sampled["top_k"], sampled["top_p"]) == (0.6, 20, 0.95)
        assert unfiltered["top_k"] in (0, -1) and unfiltered["top_p"] == 1.0


def test_the_second_drafts_with_the_slm(contenders: list[Contender], pair: Pair) -> None:
    plain, assisted = contenders
    assert assisted.name == f"{plain.name} assisted"
    assert assisted.options == {"dtype": "bfloat16", "num_drafts": 4}
    assert pair.slm in str(engine(assisted).given)
    assert pair.slm not in str(engine(plain).given)


def test_a_share_of_the_card_is_taken(contenders: list[Contender]) -> None:
    for contender in contenders:
        given = engine(contender).given
        taken = given.get("gpu_memory_utilization", given.get("mem_fraction_static"))
        assert 0.04 < taken < 0.1  # a tiny pair needs little beside the room to work


def test_closing_ends_the_engine(contenders: list[Contender]) -> None:
    for contender in contenders:
        held = engine(contender)
        contender.close()
        assert held.closed == 1 and engine(contender) is None


def test_weights_and_values_are_counted_in_the_dtype_that_runs(pair: Pair) -> None:
    def beyond(dtype: str, with_slm: bool) -> int:
        place = Place("cuda:0", dtype, 1)
        return card.needed(pair, place, 2, with_slm) - card.WORKSPACE

    alone = beyond("float32", False)
    assert abs(alone - 2 * beyond("bfloat16", False)) <= 2
    assert beyond("float32", True) > alone
    values = 2 * 256 * 2 * 2 * 2 * 16 * 4  # rows, positions, k and v, layers, heads, dim, bytes
    size = sum(path.stat().st_size for path in Path(pair.llm).glob("*.safetensors"))
    assert alone == values + size // 4 * 4


def test_no_more_than_nine_tenths_are_asked_for() -> None:
    assert card.share(100, 80) == 0.9
