"""Which transformers models the native decoder runs.

A family is a row of `FAMILIES`. What a config or module says itself (sizes, biases, tied
embeddings, position scaling) is read from there, so a row holds only what differs in kind. Any
Llama-shaped model (pre-norm RMSNorm layers, rotary positions, gated SiLU) can join by a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from hybridgen.checks import check_float, check_int, shown
from hybridgen.engine.rope import head_dim, rope_lacking

WIDEST = 2**31 - 1


def _no_window(config: PretrainedConfig, layer: int) -> int:
    return 0


def _window_everywhere(config: PretrainedConfig, layer: int) -> int:
    return 0 if config.sliding_window is None else _window(config)


def _window_by_layer(config: PretrainedConfig, layer: int) -> int:
    return _window(config) if config.layer_types[layer] == "sliding_attention" else 0


def _window(config: PretrainedConfig) -> int:
    """The config's window; null is no window, but 0 and less would hide a token from itself."""
    return check_int(f"{config.model_type}: sliding_window", config.sliding_window, 1, WIDEST)


def _rotates_everywhere(config: PretrainedConfig, layer: int) -> bool:
    return True


def _rotates_by_layer(config: PretrainedConfig, layer: int) -> bool:
    return bool(config.no_rope_layers[layer])  # 1 where there are positions, whatever its name says


@dataclass(frozen=True)
class Family:
    """What the native forward must know of a model type beyond its config.

    qk_norm  queries and keys are normalised head by head before the rotation
    window   the sliding window of a layer in tokens, 0 for none
    rotates  whether a layer turns its queries and keys by their positions
    scaled   the config has multipliers (see `multipliers`); not with qk_norm or with `rotates`
    """

    qk_norm: bool = False
    window: Callable[[PretrainedConfig, int], int] = _no_window
    rotates: Callable[[PretrainedConfig, int], bool] = _rotates_everywhere
    scaled: bool = False


FAMILIES = {
    "cwm": Family(window=_window_by_layer),
    "granite": Family(scaled=True),
    "llama": Family(),
    "ministral": Family(window=_window_by_layer),
    "mistral": Family(window=_window_everywhere),
    "phi3": Family(window=_window_everywhere),
    "qwen2": Family(window=_window_by_layer),
    "qwen3": Family(qk_norm=True, window=_window_by_layer),
    "seed_oss": Family(),
    "smollm3": Family(window=_window_by_layer, rotates=_rotates_by_layer),
}


class Multipliers(NamedTuple):
    """What a model multiplies with; 1 where it does not.

    embedding  the embedding's rows
    residual   what a block adds to the residual stream
    scores     attention's scores, beyond their usual head_dim ** -0.5
    logits     the logits
    """

    embedding: float = 1.0
    residual: float = 1.0
    scores: float = 1.0
    logits: float = 1.0


def multipliers(config: PretrainedConfig) -> Multipliers:
    """Those of a config of a native family. Raises ValueError or TypeError."""
    kind = config.model_type
    if not FAMILIES[kind].scaled:
        return Multipliers()
    names = "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"
    embedding, residual, attention, logits = (
        check_float(f"{kind}: {n}", getattr(config, n), "a finite number > 0", lambda x: x > 0)
        for n in names
    )
    return Multipliers(embedding, residual, attention * head_dim(config) ** 0.5, 1 / logits)


SILU = ("silu", "swish")
RECURRENT = ("mamba", "rwkv", "recurrent", "xlstm", "jamba", "zamba", "bamba", "lfm2", "next")


def lacking(config: PretrainedConfig) -> str | None:
    """What a model of this config needs that the native forward does not have; None for nothing.

    Such a model goes through transformers' own forward. What makes no sense is not looked for.
    """
    kind = config.model_type
    family = FAMILIES.get(kind)
    if family is None:
        return f"model type {kind!r} has no native decoder"
    if config.hidden_act not in SILU:
        return f"{kind} with hidden_act={shown(config.hidden_act)}: only silu is supported"
    if not getattr(config, "is_causal", True):
        return (
            f"{kind} with is_causal={shown(config.is_causal)}: only causal attention is supported"
        )
    known = ["full_attention"]
    if family.window is _window_by_layer:
        known.append("sliding_attention")
    if other := sorted({str(layer) for layer in _layer_types(config)} - set(known)):
        return (
            f"{kind} with {' and '.join(other)} in layer_types: only {' and '.join(known)} "
            "is supported there"
        )
    return rope_lacking(config)


def _layer_types(config: PretrainedConfig) -> list[Any]:
    return list(getattr(config, "layer_types", None) or ())


def check_can_run(config: PretrainedConfig) -> None:
    """Raise ValueError for models that need more than keys and values of each position."""
    reason = needs_more(config)
    if reason is not None:
        raise ValueError(reason)


def needs_more(config: PretrainedConfig) -> str | None:
    """What a model of this config needs beyond keys and values; None for nothing."""
    kind = config.model_type
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    recurrent = kinds - {"full_attention", "sliding_attention", "chunked_attention", "attention"}
    if recurrent or any(name in kind for name in RECURRENT):
        return (
            f"{type(config).__name__} ({kind}) has recurrent or linear-attention layers: their "
            "state cannot roll back rejected tokens"
        )
    if kind in ("bloom", "mpt") or getattr(config, "alibi", False):
        return (
            f"{kind} adds a bias of the distance (alibi) to its attention, which is not supported"
        )
    return None


def refusal(config: PretrainedConfig) -> str | None:
    """Why the native decoder cannot run a model of this config; None when it can."""
    if (reason := needs_more(config)) is not None:
        return reason
    try:
        if (reason := lacking(config)) is None:
            _check_layers(config, FAMILIES[config.model_type])
    except (ValueError, TypeError) as error:
        return str(error)
    return reason


def _check_layers(config: PretrainedConfig, family: Family) -> None:
    """Raise ValueError or TypeError for sizes that make no sense."""
    kind, kinds = config.model_type, _layer_types(config)
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    layers, _, heads, shared = (
        check_int(f"{kind}: {name}", getattr(config, name), 1) for name in sizes
    )
    lists = {"layer_types": kinds}
    if family.rotates is _rotates_by_layer:
        lists["no_rope_layers"] = list(config.no_rope_layers)
    for name, entries in lists.items():
        if entries and len(entries) < layers:
            raise ValueError(f"{kind}: {name} has {len(entries)} entries for {layers} layers")
    for layer in range(layers):
        family.window(config, layer)
    eps = f"{kind}: rms_norm_eps"
    check_float(eps, config.rms_norm_eps, "a finite number >= 0", lambda number: number >= 0)
    if heads % shared:
        raise ValueError(f"{kind}: {heads} heads cannot share {shared} keys and values evenly")
    multipliers(config)


def check(config: PretrainedConfig) -> Family:
    """The family of ``config``. ValueError, naming the supported ones, when there is none."""
    reason = refusal(config)
    if reason is not None:
        raise ValueError(f"{reason}. Supported model types: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[config.model_type]
