"""Pairs of models that run through transformers: the same promises as for native ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save, train_tokenizer
from foreign_models import KINDS, foreign_model
from test_transformers_decoder import REFUSED
from transformers import PreTrainedModel

from hybridgen import HybridGenerator, verify_exactness
from hybridgen.engine.families import FAMILIES
from hybridgen.engine.transformers_decoder import TransformersDecoder

TOKENIZER = train_tokenizer()
PROMPTS = ["the quick brown fox jumps", "def", "größe straße 中文"]
COUNT = 16
SAMPLED = {"temperature": 0.9, "top_k": 20, "seed": 3}
GREEDY = {"temperature": 0}


def model(kind: str, **options: Any) -> PreTrainedModel:
    return foreign_model(kind, vocab_size=len(TOKENIZER), **options)


def generator(slm: Any, llm: Any) -> HybridGenerator:
    return HybridGenerator(slm, llm, tokenizer=TOKENIZER, max_seq_len=128, max_batch_size=3)


def tokens(pair: HybridGenerator, prompt: Any, strategy: str, **options: Any) -> Any:
    result = pair.generate(prompt, strategy, COUNT, ignore_eos=True, print_stats=False, **options)
    return result.tokens


def transformers_greedy(llm: PreTrainedModel, prompt: str) -> list[int]:
    ids = torch.tensor([TOKENIZER(prompt).input_ids])
    mask = torch.ones_like(ids)
    options: dict[str, Any] = dict(max_new_tokens=COUNT, do_sample=False, pad_token_id=0)
    written = llm.generate(ids, attention_mask=mask, **options)
    return written[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_transformers_and_speculation_writes_the_llms(kind: str) -> None:
    llm = model(kind)
    pair = generator(model("llama", num_hidden_layers=1), llm)
    assert isinstance(pair.llm, TransformersDecoder)
    expected = tokens(pair, PROMPTS, "llm", **GREEDY)
    assert expected == [transformers_greedy(llm, prompt) for prompt in PROMPTS]
    assert tokens(pair, PROMPTS, "speculative", num_drafts=5, **GREEDY) == expected
    assert tokens(pair, PROMPTS[0], "llm", **GREEDY) == expected[0]
    coupled = tokens(pair, PROMPTS, "speculative", verification="coupled", **SAMPLED)
    assert coupled == tokens(pair, PROMPTS, "llm", **SAMPLED)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_both_models_through_transformers(kind: str) -> None:
    options = {"n_layer": 1} if kind == "gpt2" else {"num_hidden_layers": 1}
    pair = generator(model(kind, **options), model(kind))
    for strategy in ("slm", "entropy", "speculative"):
        written = tokens(pair, PROMPTS, strategy, **SAMPLED)
        assert [len(row) for row in written] == [COUNT] * 3
    report = verify_exactness(pair, PROMPTS[:1], max_new_tokens=8)
    assert "0 divergences" in str(report)


def test_folders_in_half_precision(tmp_path: Path) -> None:
    slm, llm = (save(model(kind), TOKENIZER, tmp_path / kind) for kind in ("starcoder2", "mixtral"))
    pair = HybridGenerator(slm, llm, dtype="bfloat16", max_seq_len=128)
    assert pair.slm.dtype == pair.llm.dtype == torch.bfloat16
    coupled = tokens(pair, PROMPTS, "speculative", verification="coupled", **SAMPLED)
    assert coupled == tokens(pair, PROMPTS, "llm", **SAMPLED)


def test_the_list_of_models_names_the_types_that_are_tested() -> None:
    listed = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = listed.split("| `model_type` | runs on |")[1].split("\n\n")[0].splitlines()[2:]
    native, foreign, refused = (set(row.split("|")[1].strip().split(", ")) for row in table)
    assert native == set(FAMILIES)
    assert foreign == set(KINDS)
    assert refused <= {*REFUSED, "mpt"}


def test_a_refusal_names_the_argument_and_the_model() -> None:
    with pytest.raises(ValueError, match=r"llm_model_id: .*GptOssForCausalLM .* s_aux"):
        generator(model("llama"), model("gpt_oss", num_local_experts=4, num_experts_per_tok=2))
