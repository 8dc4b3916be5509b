"""A round with a model that runs through transformers decides nothing on the host either."""

from typing import Any

import pytest
import torch
from fake_cuda import AnyDecoder, HostTouched, dry_run
from transformers import AutoConfig, AutoModelForCausalLM

from hybridgen.engine.transformers_decoder import TransformersDecoder
from hybridgen.kernels.uncertainty import PROBS
from hybridgen.strategies.drafts import SlmDrafts
from hybridgen.strategies.routing import llm_round, slm_round
from hybridgen.strategies.speculative import speculative_round

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch (no card)"
)
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "sliding_window": 32},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "mixtral": {**EXPERTS, "sliding_window": None},
    "phimoe": EXPERTS,
}


def decoder(kind: str, **options: Any) -> TransformersDecoder:
    settings: dict[str, Any] = {"vocab_size": 384, "max_position_embeddings": 512}
    if kind != "gpt2":
        settings |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        settings |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, **settings, **KINDS.get(kind, {}), **options)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    return TransformersDecoder(model, batch_invariant=False)


@pytest.fixture(scope="module")
def slm() -> AnyDecoder:
    return decoder("llama")


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "mixtral"])
def test_a_round_never_touches_the_host(
    kind: str, slm: AnyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks which card multiplies groups of experts.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    llm = decoder(kind)
    assert llm.capturable
    for rows in (1, 4):
        dry_run((slm, llm), rows, lambda batch: speculative_round(batch, SlmDrafts(), 4, True))
        dry_run((llm, slm), rows, lambda batch: slm_round(batch, "entropy", PROBS, False, 1))
    dry_run((slm, llm), 2, lambda batch: llm_round(batch, 8))


def test_what_the_probe_says_of_the_host_is_so(
    slm: AnyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    llm = decoder("phimoe")
    assert not llm.capturable
    with pytest.raises(HostTouched):
        dry_run((slm, llm), 1, lambda batch: speculative_round(batch, SlmDrafts(), 4, True))
