"""torch's default dtype and device belong to others: nothing of ours may depend on them.

transformers sets the default dtype of the whole process while it builds a half-precision model, so
a tensor made without a dtype in that moment, by another thread, has the wrong one; where it is
cached, it has it for ever.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair, random_model

import hybridgen
from hybridgen import HybridGenerator, verify_exactness
from hybridgen.engine.decoder import Decoder
from hybridgen.kernels import attention, attention_plan, layers
from hybridgen.utils import calculate_token_entropy, compute_logu, sample_token

ROOT = Path(hybridgen.__file__).parent
FACTORIES = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint"),
    *("randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}
ROPE = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)


@contextmanager
def other_defaults(dtype: torch.dtype) -> Iterator[None]:
    """Another default dtype and device, and nothing cached from before; nor left for later."""
    empty_caches()
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        empty_caches()


def empty_caches() -> None:
    for module in (attention, attention_plan, layers):
        for member in vars(module).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()


def everything(generator: HybridGenerator) -> list[Any]:
    """What all strategies and the functions of `utils` answer, with numbers that halves lack."""
    found: list[Any] = []
    options = {"temperature": 0.7, "top_p": 0.95, "top_k": 100, "min_p": 0.001, "seed": 3}
    prompts = ["def area(radius):\n", "größe"]
    for strategy in ("speculative", "uncertainty", "entropy", "llm", "slm"):
        for extra in ({}, {"verification": "coupled", "num_drafts": 7}, {"llm_fraction": 0.3}):
            if "llm_fraction" in extra and strategy not in ("uncertainty", "entropy"):
                continue
            result = generator.generate(
                prompts, strategy, 30, print_stats=False, **options, **extra
            )
            found.append(result.tokens)
    generated = torch.Generator("cpu").manual_seed(0)
    logits = torch.randn(3, 5000, generator=generated, dtype=torch.float32, device="cpu")
    found.append(sample_token(logits, 0.7, 2047, 0.9, 0.001, seed=2, position=5).tolist())
    found.append([measure.tolist() for measure in compute_logu(logits)])
    found.append(calculate_token_entropy(logits, 0.7).tolist())
    found.append(str(verify_exactness(generator, ["def"], max_new_tokens=8, num_drafts=(3,))))
    return found


@pytest.fixture(scope="module")
def expected(tiny_pair: TinyPair) -> list[Any]:
    return everything(HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32))


@dtypes
def test_a_running_generator(tiny_pair: TinyPair, expected: list[Any], dtype: torch.dtype) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    with other_defaults(dtype):
        assert everything(generator) == expected


@dtypes
def test_a_generator_made_of_loaded_models(tiny_tokenizer: Any, dtype: torch.dtype) -> None:
    def make() -> HybridGenerator:
        return HybridGenerator(*models, tokenizer=tiny_tokenizer, device="cpu", max_seq_len=250)

    models = random_model(384, 1, 32, seed=1), random_model(384, 2, 64, seed=2)
    expected = everything(make())
    with other_defaults(dtype):
        assert everything(make()) == expected


@dtypes
@pytest.mark.parametrize("kind", ROPE)
def test_positions(kind: str, dtype: torch.dtype) -> None:
    model = random_model(384, 1, 32, seed=1)
    model.config.rope_parameters = {"rope_theta": 1000.0, **ROPE[kind]}

    def table() -> torch.Tensor:
        decoder = Decoder.from_model(model)
        shape = (1, 2, 1, 1, 512, 16)
        decoder.bind(torch.zeros(shape, dtype=torch.float32, device="cpu"))
        return decoder._rope_table

    expected = table()
    with other_defaults(dtype):
        assert torch.equal(table(), expected)


def factory_calls() -> list[tuple[str, int, str, set[str]]]:
    """File, line, name and keywords of every call in the package that makes a tensor of nothing."""
    found = []
    for path in sorted([*ROOT.rglob("*.py"), *(ROOT / "kernels").glob("*.py")]):
        if "pair" in path.relative_to(ROOT).parts[:-1]:
            continue  # training is a process of its own
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                of_torch = isinstance(owner, ast.Name) and owner.id == "torch"
                if of_torch and node.func.attr in FACTORIES:
                    keywords = {keyword.arg or "**" for keyword in node.keywords}
                    found.append((path.name, node.lineno, node.func.attr, keywords))
    return found


def test_every_tensor_names_its_dtype_and_device() -> None:
    calls = factory_calls()
    assert len(calls) > 20
    wrong = [call for call in calls if not {"dtype", "device"} <= call[3]]
    assert not wrong
