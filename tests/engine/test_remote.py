"""The SLM on one card and the LLM on another; a model spread over several is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TinyPair
from conftest import random_model as tiny_model
from tiny_models import random_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridgen import HybridGenerator
from hybridgen.engine import pair as pairs
from hybridgen.engine import prefill
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loading import look
from hybridgen.engine.pair import Pair
from hybridgen.engine.remote import Remote, within_reach
from hybridgen.engine.reports import Immediate
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.uncertainty import PROBS
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.strategies.drafts import SlmDrafts, speculative_round
from hybridgen.strategies.routing import llm_round, slm_round
from hybridgen.strategies.single import single_round

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
STRATEGIES = ["speculative", "uncertainty", "entropy", "llm", "slm"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_remote_model_writes_the_same_text(
    tiny_pair: TinyPair, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> Any:
        generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
        prompts = ["def area(radius):\n", "the quick brown fox"]
        options = {"seed": 3, "max_new_tokens": 20, "print_stats": False}
        return generator, generator.generate(prompts, strategy, **options).tokens

    _, expected = write()
    monkeypatch.setattr(pairs, "within_reach", Remote)
    generator, tokens = write()
    assert isinstance(generator.pair.slm, Remote)
    assert tokens == expected


class OneDevice(TorchDispatchMode):
    """Counts copies from device to device, and refuses any other op on tensors of several."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        devices = {tensor.device for tensor in tensors}
        assert devices <= {FIRST, SECOND}, f"{func} on {devices}"
        if len(devices) == 2:
            assert func.__name__.startswith(("to.", "_to_copy.")), f"{func} on {devices}"
            self.copies += 1
        return result


def on(device: torch.device, decoder: Decoder) -> Decoder:
    """Within a FakeTensorMode: ``decoder`` with weights there."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=device)

    return Decoder(decoder.config, decoder.weights.map(empty))


def draft(batch: Batch, with_q: bool) -> None:
    speculative_round(batch, SlmDrafts(), 4, with_q)


# What a round is, and the copies in it: two in and one out for each forward of the SLM.
ROUNDS: dict[str, tuple[Any, int]] = {
    "rejection": (lambda batch: draft(batch, True), 4 * 3),
    "coupled": (lambda batch: draft(batch, False), 4 * 3),
    "slm alone": (lambda batch: single_round(batch, SOURCE_SLM), 3),
    "llm alone": (lambda batch: single_round(batch, SOURCE_LLM), 0),
    "routing": (lambda batch: slm_round(batch, "uncertainty", PROBS, True, 1), 3),
    "catch-up": (lambda batch: llm_round(batch, 16), 0),
    "prefill": (lambda batch: batch.slm.prefill(batch.rows.tokens[:, :9], [9, 5]), 1),
    "more of a prompt": (
        lambda batch: batch.slm.prefill(batch.rows.tokens[:, :9], [9, 5], None, [3, 0]),
        1,
    ),
}


@pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch (no card)"
)
@pytest.mark.parametrize("name", ROUNDS)
def test_no_op_mixes_the_cards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = SimpleNamespace(capture=lambda work: work, record=lambda work: work)
    monkeypatch.setattr(pairs, "Graphs", lambda device: graphs)  # these two ask for a card
    monkeypatch.setattr(pairs, "Pinned", lambda rows: Immediate())
    small, large = tiny_model(400, 1, 32, seed=1), tiny_model(384, 2, 64, seed=2)
    decoders = Decoder.from_model(small), Decoder.from_model(large)
    round_, copies = ROUNDS[name]
    # What is tried out once a model is on the host's account.
    monkeypatch.setattr(prefill, "size_classes", lambda products, sizes, dtype: [sizes])
    with FakeTensorMode(), torch.inference_mode():
        pair = Pair(on(SECOND, decoders[0]), on(FIRST, decoders[1]), 3, 100)
        batch = pair.batch(2)
        assert [one.device for one in pair.arena.caches] == [SECOND, FIRST]
        assert pair.arena.workspace.device == batch.rows.tokens.device == FIRST
        assert batch.capture is None
        with OneDevice() as guard:
            round_(batch)
    assert guard.copies == copies
    assert {device: needs.weights > 0 for device, needs in pair.demand().items()} == {
        FIRST: True,
        SECOND: True,
    }


def test_a_model_on_the_device_of_the_texts_is_called_itself() -> None:
    decoder = Decoder.from_model(random_model("qwen3"))
    assert within_reach(decoder, torch.device("cpu")) is decoder
    assert isinstance(within_reach(decoder, FIRST), Remote)


@pytest.mark.parametrize(
    ("placed", "named"),
    [
        ({"model.embed_tokens": 0, "model.layers.0": 1, "lm_head": 0}, "cuda:0, cuda:1"),
        ({"model": 0, "lm_head": "cpu"}, "cpu, cuda:0"),
        ({"model": torch.device("cuda:1"), "lm_head": "disk"}, "cuda:1, disk"),
        ({"": "disk"}, "disk"),
    ],
)
def test_a_spread_model_is_refused(placed: dict[str, Any], named: str) -> None:
    model = random_model("qwen3")
    model.hf_device_map = placed
    told = rf"slm_model_id: .*it is spread over {named}: .* device_map=\{{'': 0\}}.* two different"
    with pytest.raises(ValueError, match=told):
        look(model, "slm_model_id")


def test_parameters_on_several_devices_are_refused() -> None:
    model = random_model("qwen3")
    model.model.norm.to("meta")
    with pytest.raises(ValueError, match="it is spread over cpu, meta"):
        look(model, "llm_model_id")


@pytest.mark.parametrize("placed", [{"": 0}, {"": "cpu"}, {"model": 0, "lm_head": "cuda:0"}])
def test_a_model_that_is_whole_is_not(placed: dict[str, Any]) -> None:
    model = random_model("qwen3")
    model.hf_device_map = placed
    assert look(model, "llm_model_id").load("cpu").vocab_size
