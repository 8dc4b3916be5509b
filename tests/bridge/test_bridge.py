"""`accelerate` and `hybrid_generate`: what they stand in for, take, refuse and leave alone."""

import copy
import gc
import pickle
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_models import PROMPTS, VOCAB, pair
from contract import BESIDES, REFUSED, markdown
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, pipeline

from hybridgen.bridge import Accelerated, accelerate, hybrid_generate
from hybridgen.bridge.engines import engine_of

IDS, MASK = PROMPTS[4]
GIVEN: dict[str, Any] = {
    "input_ids": IDS,
    "attention_mask": MASK,
    "max_new_tokens": 10,
    "pad_token_id": 0,
    "eos_token_id": 0,
}
GREEDY = {**GIVEN, "do_sample": False}
SAMPLED = {**GIVEN, "do_sample": True, "top_k": 0}


@lru_cache(maxsize=1)
def models() -> tuple[PreTrainedModel, PreTrainedModel, Any]:
    small, large = pair("qwen3")
    return small, large, accelerate(large, small)


def test_an_accelerated_model_stands_in_for_the_model() -> None:
    _, large, fast = models()
    assert isinstance(fast, PreTrainedModel) and type(fast) is Accelerated
    assert fast.config is large.config and fast.generation_config is large.generation_config
    assert (fast.device, fast.dtype) == (large.device, large.dtype)
    assert torch.equal(fast(IDS).logits, large(IDS).logits)


def test_what_is_set_is_set_on_the_model_and_methods_can_be_chained() -> None:
    small, large = pair("qwen3")
    fast = accelerate(large, small, num_drafts=3)
    assert fast.eval() is fast and fast.to("cpu") is fast and fast.train() is fast
    assert large.training
    fast.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    assert large.generation_config is fast.generation_config
    assert fast.generate(IDS, attention_mask=MASK).shape[1] == IDS.shape[1] + 3
    for copied in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is Accelerated
        assert torch.equal(copied.generate(**GREEDY), fast.generate(**GREEDY))


def test_defaults_of_accelerate_and_arguments_of_a_call() -> None:
    small, large, _ = models()
    fast = accelerate(large, small, strategy="entropy", threshold=100.0)
    by_slm = fast.generate(**GREEDY)
    assert not torch.equal(by_slm, large.generate(**GREEDY))
    assert torch.equal(by_slm, fast.generate(**GREEDY, strategy="slm"))
    assert torch.equal(fast.generate(**GREEDY, strategy="llm"), large.generate(**GREEDY))
    with pytest.raises(ValueError, match=r"^num_drafts must be an integer from 1 to 15, got 99"):
        accelerate(large, small, num_drafts=99)
    with pytest.raises(TypeError, match=r"'num_draft'.*did you mean 'num_drafts'"):
        accelerate(large, small, num_draft=4)


def test_without_a_small_model_drafts_are_looked_up() -> None:
    _, large, _ = models()
    fast = accelerate(large)
    assert torch.equal(fast.generate(**GREEDY), large.generate(**GREEDY))
    with pytest.raises(ValueError, match="strategy='entropy' runs an SLM"):
        fast.generate(**GREEDY, strategy="entropy")


@pytest.mark.parametrize("options", [{}, {"num_drafts": 4}, {"strategy": "llm"}])
def test_as_a_custom_generate(options: dict[str, Any]) -> None:
    small, large, _ = models()
    found = large.generate(**GREEDY, custom_generate=hybrid_generate, slm=small, **options)
    assert torch.equal(found, large.generate(**GREEDY))


def test_a_pipeline_takes_it(tiny_pair: Any, tiny_tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM as Auto

    large = Auto.from_pretrained(tiny_pair.llm, dtype=torch.float32)
    fast = accelerate(large, Auto.from_pretrained(tiny_pair.slm, dtype=torch.float32))
    given = {"do_sample": False, "max_new_tokens": 12}
    texts = ["def area(", "for item in items:", "the"]
    plain = pipeline("text-generation", model=large, tokenizer=tiny_tokenizer)(texts, **given)
    ours = pipeline("text-generation", model=fast, tokenizer=tiny_tokenizer)(texts, **given)
    assert ours == plain


def test_a_seed_and_torchs_own_repeat_a_call() -> None:
    fast = models()[2]
    first = fast.generate(**SAMPLED, seed=3)
    assert torch.equal(fast.generate(**SAMPLED, seed=3), first)
    assert not torch.equal(fast.generate(**SAMPLED, seed=4), first)
    torch.manual_seed(7)
    first, second = fast.generate(**SAMPLED), fast.generate(**SAMPLED)
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(fast.generate(**SAMPLED), first)
    assert torch.equal(fast.generate(**SAMPLED), second)
    same = {"num_return_sequences": 8, "input_ids": IDS[:1], "attention_mask": MASK[:1]}
    rows = fast.generate(**{**SAMPLED, **same})
    assert rows.shape[0] == 8 and len({tuple(row) for row in rows.tolist()}) > 1


def test_a_dictionary_is_returned_where_it_is_asked_for() -> None:
    _, large, fast = models()
    asked = {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.3}
    found, expected = fast.generate(**GREEDY, **asked), large.generate(**GREEDY, **asked)
    assert torch.equal(found.sequences, expected.sequences) and found.logits is None
    new = expected.sequences[:, IDS.shape[1] :]
    for step, (one, other) in enumerate(zip(found.scores, expected.scores, strict=True)):
        going = ~(new[:, :step] == 0).any(1)
        assert torch.allclose(one[going], other[going], atol=1e-4)
    assert fast.generate(**GREEDY, return_dict_in_generate=True).scores is None


def test_padding_on_the_right_is_left_out() -> None:
    large, fast = models()[1:]
    ids, mask = IDS.clone(), MASK.flip(1)
    for row in range(len(ids)):
        ids[row] = torch.cat([IDS[row][MASK[row] == 1], IDS[row][MASK[row] == 0]])
    found = fast.generate(**{**GREEDY, "input_ids": ids, "attention_mask": mask})
    assert torch.equal(found[:, : ids.shape[1]], ids)
    assert torch.equal(found[:, ids.shape[1] :], large.generate(**GREEDY)[:, ids.shape[1] :])


def test_nothing_of_the_models_is_changed() -> None:
    small, large = pair("qwen3")
    large.generation_config.stop_strings = None
    large.train()
    states = [copy.deepcopy(model.state_dict()) for model in (small, large)]
    configs = [model.config.to_dict() for model in (small, large)]
    generation = large.generation_config.to_dict()
    fast = accelerate(large, small)
    config = GenerationConfig(max_new_tokens=5, repetition_penalty=1.2, pad_token_id=0)
    before = config.to_dict()
    fast.generate(IDS, config, attention_mask=MASK)
    assert config.to_dict() == before and large.generation_config.to_dict() == generation
    assert [model.config.to_dict() for model in (small, large)] == configs
    assert large.training and not small.training
    for model, state in zip((small, large), states, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def test_the_config_of_the_model_and_of_the_call() -> None:
    small, large = pair("qwen3")
    large.generation_config.update(max_new_tokens=6, repetition_penalty=1.5, pad_token_id=0)
    fast = accelerate(large, small)
    given = {"input_ids": IDS, "attention_mask": MASK}
    for more in ({}, {"max_new_tokens": 3}, {"repetition_penalty": 1.0}):
        assert torch.equal(fast.generate(**given, **more), large.generate(**given, **more))
    config = GenerationConfig(max_new_tokens=4, no_repeat_ngram_size=1, pad_token_id=0)
    expected = large.generate(**given, generation_config=config)
    assert torch.equal(fast.generate(**given, generation_config=config), expected)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"attention_mask": torch.tensor([[1, 0, 1] * 3] * 4)}, "^attention_mask must not have holes"),
    ({"attention_mask": torch.zeros(4, 9, dtype=torch.int64)}, "^input_ids must have at least one"),
    ({"max_new_tokens": 10**5}, "max_seq_len"),
    ({"num_drafts": 0}, "^num_drafts must be"),
    ({"verification": "lossy"}, "^verification must be"),
    ({"strategy": "fast"}, "^strategy must be one of"),
    ({"seed": -1}, "^seed must be"),
    ({"guidance_scale": 2.0, "strategy": "entropy"}, "^guidance_scale must be 1 with"),
    ({"eos_token_id": [*range(17)]}, "^eos_token_id must be at most 16"),
]


@pytest.mark.parametrize(("asked", "named"), [*REFUSED, *WRONG], ids=lambda part: str(part)[:40])
def test_what_is_not_supported_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    fast = models()[2]
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=named):
        fast.generate(**{**GREEDY, **asked})
    assert torch.equal(fast.generate(**GREEDY), models()[1].generate(**GREEDY))


def test_a_streamer_takes_one_sequence() -> None:
    class Silent:
        def put(self, value: Tensor) -> None: ...
        def end(self) -> None: ...

    with pytest.raises(ValueError, match=r"^streamer works with one sequence, got 4"):
        models()[2].generate(**GREEDY, streamer=Silent())
    with pytest.raises(TypeError, match=r"^streamer must have the methods put\(\) and end\(\)"):
        models()[2].generate(**GREEDY, streamer=print)


@pytest.mark.parametrize("model", ["gpt2", torch.nn.Linear(1, 1), None])
def test_only_loaded_models_are_accelerated(model: Any) -> None:
    with pytest.raises(TypeError, match=r"^llm must be a loaded transformers model"):
        accelerate(model)


def test_the_engine_is_made_once_and_goes_with_the_model() -> None:
    small, large = pair("qwen3")
    engine = engine_of(large, small, 4, None)
    assert accelerate(large, small) and engine_of(large, small, 4, None) is engine
    assert copy.deepcopy(large)._hybridgen_engines == {}
    gone, cache = weakref.ref(engine), weakref.ref(engine.pair.arena)
    del engine
    del large, small
    gc.collect()
    assert gone() is None and cache() is None


def test_a_small_model_that_lives_on_does_not_keep_the_engine() -> None:
    small, large = pair("qwen3")
    gone = weakref.ref(engine_of(large, small, 4, None))
    del large
    gc.collect()
    assert gone() is None and small is not None


def test_a_large_model_forgets_the_engine_of_a_small_one_that_has_gone() -> None:
    small, large = pair("qwen3")
    gone = weakref.ref(engine_of(large, small, 4, None))
    del small
    gc.collect()
    assert gone() is None and large._hybridgen_engines == {}


def test_weights_that_have_moved_make_a_new_engine() -> None:
    small, large = pair("qwen3")
    fast = accelerate(large, small)
    first = engine_of(large, small, 4, None)
    large.double().float()
    with torch.no_grad():
        large.model.layers[0].mlp.down_proj.weight.mul_(-1)
    assert torch.equal(fast.generate(**GREEDY), large.generate(**GREEDY))
    assert engine_of(large, small, 4, None) is not first


def test_vocabulary_is_as_told() -> None:
    assert models()[1].config.vocab_size == VOCAB


def test_readme_has_the_table_of_what_is_tested() -> None:
    root = Path(__file__).parent.parent.parent
    assert markdown() in (root / "docs" / "transformers.md").read_text(encoding="utf-8")
    for argument, test in BESIDES.items():
        assert argument in (Path(__file__).parent / test).read_text(encoding="utf-8")
