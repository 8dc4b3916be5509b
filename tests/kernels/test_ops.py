"""Each op's schema and its shapes for tracing say what the implementation does.

On fake tensors, fake cuda ones too, only shapes are computed: that is how a whole round is checked
for a GPU without one.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hybridgen.kernels import sampling, uncertainty, verify
from hybridgen.kernels.lookup import lookup
from hybridgen.kernels.penalties import penalize
from hybridgen.kernels.routing import route, unread
from hybridgen.kernels.window import window

WRITTEN = {
    "lookup": ["drafts"],
    "commit": ["tokens", "length", "done", "report"],
    "sample_into": ["token", "truncation", "kept"],
    "window": ["ids", "positions"],
    "route": ["threshold", "metrics", "decisions", "routed", "report"],
    "unread": ["cached"],
    "verify_coupled": ["target_truncation"],
    "verify_rejection": ["target_truncation"],
}


def cases(rows: int, drafts: int, vocab: int, dtype: torch.dtype) -> dict[str, tuple[Any, tuple]]:
    """Name, callable and arguments of every op."""
    generator = torch.Generator().manual_seed(0)

    def logits(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    rows_logits, params = (
        logits(rows, vocab),
        torch.tensor([[0.6, 5, 0.9, 0.0]]).double().repeat(rows, 1),
    )
    seed, length = torch.arange(rows), torch.arange(rows) + 3
    target, draft = logits(rows, drafts + 1, vocab), logits(rows, drafts, vocab - 2)
    tokens = torch.ones(rows, drafts, dtype=torch.int64)
    state = (
        torch.zeros(rows, 40, dtype=torch.int64),
        length.clone(),
        torch.zeros(rows, dtype=torch.bool),
        torch.zeros(rows, verify.HEAD + verify.WINDOW, dtype=torch.int64),
    )
    block = (
        torch.ones(rows, drafts + 1, dtype=torch.int64),
        torch.ones(rows, dtype=torch.int64),
        verify.SOURCE_LLM,
        verify.SOURCE_SLM,
        torch.zeros(rows, dtype=torch.bool),
        torch.full((rows,), 40),
        torch.full((rows, 2), -1),
        torch.zeros(rows, drafts, 3),
    )
    verdict, told = (params, seed, length), torch.zeros(rows, drafts + 1, 3)
    biases, one = (torch.ones(vocab), torch.zeros(vocab)), torch.ones(1)
    penalties = (state[0], length, torch.ones(rows, 3, dtype=torch.int64), *biases, length + 1)
    return {
        "filter_logits": (sampling.filter_logits, (rows_logits, params)),
        "sample": (sampling.sample, (rows_logits, params, seed, length, 1)),
        "sample_into": (
            sampling.sample_into,
            (
                *(
                    rows_logits,
                    params,
                    seed,
                    length,
                    1,
                    torch.zeros(rows, 2, dtype=torch.int64)[:, 1],
                ),
                *(torch.zeros(rows, 2, 3)[:, 1], torch.zeros_like(rows_logits)),
            ),
        ),
        "entropy": (uncertainty.entropy, (rows_logits, torch.ones(rows))),
        "logtoku": (uncertainty.logtoku, (rows_logits, 10, uncertainty.PROBS)),
        "sample_measured": (
            uncertainty.sample_measured,
            (rows_logits, params, seed, length, 1, 10, uncertainty.PROBS),
        ),
        "verify_coupled": (verify.verify_coupled, (target, tokens, *verdict, told)),
        "verify_rejection": (
            verify.verify_rejection,
            (target, draft, tokens, torch.zeros(rows, drafts, 3), *verdict, told),
        ),
        "lookup": (lookup, (torch.ones(rows, 9, dtype=torch.int64), length, tokens.clone())),
        "penalize": (penalize, (target, *penalties, 2 * one, one.long())),
        "commit": (verify.commit, (*state, *block)),
        "window": (
            window,
            (*state[:2], length - 1, tokens.clone(), torch.zeros(5, rows, dtype=torch.int64)),
        ),
        "route": (
            route,
            (
                *(
                    torch.rand(rows, 5, generator=generator)[:, 2],
                    state[2],
                    length,
                    length - 2,
                    torch.full((rows,), 0.5),
                ),
                *(
                    torch.zeros(rows),
                    torch.rand(rows, 16, generator=generator),
                    torch.arange(2 * rows).view(rows, 2).flip(1),
                    state[2].clone(),
                ),
                *(state[3], True),
            ),
        ),
        "unread": (unread, (*state[:3], length - 2, 4, 1)),
    }


NAMES = list(cases(1, 1, 8, torch.float32))
SHAPES = [(1, 4, 100), (3, 1, 20), (2, 0, 20)]


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results or ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fake_results_look_like_real_ones(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    call, arguments = cases(*shape, dtype)[name]
    real = flat(call(*arguments))
    for device in ("cpu", "cuda"):
        with FakeTensorMode() as mode:
            fakes = [
                torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device)
                if isinstance(a, Tensor)
                else a
                for a in arguments
            ]
            results = flat(call(*fakes))
        assert all(isinstance(r, FakeTensor) and r.fake_mode is mode for r in results)
        assert [(r.shape, r.dtype, r.device.type) for r in results] == [
            (r.shape, r.dtype, device) for r in real
        ]


@pytest.mark.parametrize("name", NAMES)
def test_schema_and_shapes_pass_torchs_own_check(name: str) -> None:
    """Undeclared writes and aliases, and shapes under tracing."""
    _, arguments = cases(2, 3, 20, torch.float32)[name]
    op = getattr(torch.ops.hybridgen, name).default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", NAMES)
def test_schema_declares_exactly_the_written_arguments(name: str) -> None:
    schema = getattr(torch.ops.hybridgen, name).default._schema
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert written == WRITTEN.get(name, [])
    assert schema.is_mutable == (name in WRITTEN)


@pytest.mark.parametrize("name", NAMES)
def test_the_dispatcher_leads_to_the_same_implementation(name: str) -> None:
    """Plain CPU tensors skip the dispatcher: with it the results are the same."""
    call, arguments = cases(2, 3, 20, torch.float32)[name]
    direct = flat(call(*arguments))
    dispatched = flat(getattr(torch.ops.hybridgen, name)(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_under_inference_mode_and_with_gradients_required(name: str) -> None:
    with torch.inference_mode():
        call, arguments = cases(2, 3, 20, torch.float32)[name]
        expected = flat(call(*arguments))
    call, arguments = cases(2, 3, 20, torch.float32)[name]
    if arguments[0].is_floating_point():
        arguments[0].requires_grad_()
    results = flat(call(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert not any(r.requires_grad for r in results)
