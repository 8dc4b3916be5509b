"""How long a sequence a config is made for, and which position scaling makes sense."""

import math
from typing import Any

import pytest
import torch
from tiny_models import bound, random_model, random_tokens
from transformers import LlamaConfig, Qwen3Config

from hybridgen.engine.rope import check_rope, context

THETA = {"rope_theta": 1e4}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("stated", "scaling", "expected"),
    [
        (4096, {"rope_type": "default"}, 4096),
        # Qwen's model cards: yarn is added, max_position_embeddings is left alone.
        (
            40960,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            131072,
        ),
        (32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        # The same, with max_position_embeddings raised.
        (
            131072,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            131072,
        ),
        (32768, {"rope_type": "yarn", "factor": 4.0}, 131072),
        (4096, {"rope_type": "linear", "factor": 4}, 16384),
        (4096, {"rope_type": "linear", "factor": 2.5}, 10240),
        (4096, {"rope_type": "linear", "factor": 0.5}, 4096),
        (4096, {"rope_type": "linear", "factor": 2.0**60}, 2**72),
        (
            16384,
            {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 4096},
            16384,
        ),
        (4096, {"rope_type": "dynamic", "factor": 4.0}, 16384),
        # Llama 3.1 and 3.2: original times factor is not the context.
        (131072, {"rope_type": "llama3", "factor": 8.0, **LLAMA3}, 131072),
        (131072, {"rope_type": "llama3", "factor": 32.0, **LLAMA3}, 131072),
    ],
)
def test_the_context_of_a_config(stated: int, scaling: dict[str, Any], expected: int) -> None:
    config = LlamaConfig(max_position_embeddings=stated, rope_parameters={**THETA, **scaling})
    assert context(config) == expected
    check_rope(config)


def test_a_config_of_older_transformers() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = Qwen3Config.from_dict(
        {"max_position_embeddings": 40960, "rope_theta": 1e6, "rope_scaling": scaling}
    )
    assert context(config) == 131072


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_positions_past_the_stated_ones_are_those_of_transformers(kind: str) -> None:
    model = random_model(
        "llama",
        max_position_embeddings=32,
        rope_parameters={**THETA, "rope_type": kind, "factor": 4.0},
    )
    decoder = bound(model, positions=128)
    assert decoder.max_positions == 128
    tokens = random_tokens(1, 128)
    ours = torch.cat(
        [decoder(tokens[:, i : i + 16], torch.tensor([i])) for i in range(0, 128, 16)], 1
    )
    with torch.no_grad():
        assert torch.allclose(ours, model(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "dynamic", "llama3"])
@pytest.mark.parametrize(
    "change",
    [
        {"factor": "4"},
        {"factor": None},
        {"factor": math.nan},
        {"factor": math.inf},
        {"factor": [4.0]},
        {"factor": 0.0},
        {"rope_theta": 0.0},
        {"rope_theta": -2.0},
        {"rope_theta": "big"},
        {"rope_theta": None},
        {"rope_theta": math.nan},
        {"original_max_position_embeddings": "many"},
        {"original_max_position_embeddings": -5},
        {"low_freq_factor": None},
    ],
    ids=str,
)
def test_scaling_that_makes_no_sense_is_refused_or_unused(
    kind: str, change: dict[str, Any]
) -> None:
    parameters = {**THETA, "rope_type": kind, "factor": 2.0}
    if kind in ("llama3", "yarn"):
        parameters |= {"original_max_position_embeddings": 64}
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(rope_parameters=dict(parameters))
    expected = bound(random_model("llama", rope_parameters=dict(parameters)))._rope_table
    config.rope_parameters.update(change)
    try:
        check_rope(config)
    except ValueError as error:
        assert "rotary positions" in str(error)
        return
    # What passes does not need the field.
    model = random_model("llama", rope_parameters=parameters)
    model.config.rope_parameters.update(change)
    table = bound(model)._rope_table
    assert table.isfinite().all()
    assert kind != "default" or torch.equal(table, expected)
