"""Whether the tensors of a checkpoint are the parameters of the model that its config describes."""

import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from torch import Size
from transformers import PreTrainedModel

from hybridgen.engine.checkpoint import FLOATS, Header, listed, numbers

LAYER = re.compile(r"(^|\.)layers\.\d+\.")


def check_headers(blueprint: PreTrainedModel, headers: Mapping[str, Header]) -> None:
    """Refuse, before a weight is read, what would cost memory to refuse later, or be cast.

    blueprint  the model on the meta device. Raises ValueError.
    """
    # A base model is saved without the prefix; transformers knows what is meant by it.
    prefix = f"{blueprint.base_model_prefix}."
    found = {name.removeprefix(prefix): header for name, header in headers.items()}
    expected = {name: tensor.shape for name, tensor in blueprint.state_dict().items()}
    at = {name: found.get(name.removeprefix(prefix)) for name in expected}
    odd = [f"{name} ({h.dtype})" for name, h in at.items() if h and h.dtype not in FLOATS]
    if odd:
        raise ValueError(
            f"weights must be stored as {', '.join(FLOATS)}, not as {listed(odd)}: such numbers "
            "mean nothing without the scheme that quantised them"
        )
    # What is missing is made anew before it is reported. Allow for little of that.
    wanted = sum(parameter.numel() for parameter in blueprint.parameters())
    if wanted > 2 * numbers(headers):
        tied = getattr(blueprint, "all_tied_weights_keys", ())
        missing = [name for name, header in at.items() if header is None and name not in tied]
        shapes = [(n, h.shape, expected[n]) for n, h in at.items() if h and h.shape != expected[n]]
        raise ValueError(_incomplete(missing, shapes))


def check_keys(model: PreTrainedModel, name: str, report: Mapping[str, Any]) -> None:
    """Refuse a model that was not made of its checkpoint; warn of weights that it does not use.

    report  what transformers says of the keys, without those that it declares harmless
    name    the checkpoint's, for the warning

    Raises ValueError for parameters that the checkpoint lacks or has in another shape, and for
    tensors that say that it is a checkpoint of another model.
    """
    missing, shapes = list(report["missing_keys"]), list(report["mismatched_keys"])
    if missing or shapes:
        foreign = list(report["unexpected_keys"])
        raise ValueError(_incomplete(missing, shapes, foreign))
    expected = model.state_dict().keys()
    unused = sorted(report["unexpected_keys"])
    foreign = [key for key in unused if _is_of_another_model(key, expected, model)]
    if foreign:
        raise ValueError(
            f"its weights are of another model than {type(model).__name__}, which has no "
            f"{listed(foreign)}: config.json does not belong to them"
        )
    if unused:
        warnings.warn(
            f"{name} has tensors that {type(model).__name__} does not use: {listed(unused)}",
            stacklevel=2,
        )


def _is_of_another_model(key: str, expected: Collection[str], model: PreTrainedModel) -> bool:
    """Whether a tensor would change what the model computes.

    Part of a layer (further layers, norms, biases, scales), of a module that the model has, or one
    of the model's own tensors under a prefix. Other tensors feed parts that hang off the model.
    """
    prefix = f"{model.base_model_prefix}."
    bare = {name.removeprefix(prefix) for name in expected}
    modules = {name.rpartition(".")[0] for name in bare}
    parts = key.split(".")
    tails = {".".join(parts[first:]) for first in range(1, len(parts))}
    return bool(
        LAYER.search(key)
        or key.removeprefix(prefix).rpartition(".")[0] in modules
        or tails & {*bare, *expected}
    )


def _incomplete(
    missing: list[str], shapes: list[tuple[str, Size | tuple[int, ...], Size]], foreign: Any = ()
) -> str:
    """What the weights lack, in words."""
    reasons = []
    if missing:
        reasons.append(f"they lack {listed(missing)}")
    if shapes:
        pairs = [f"{name} ({_times(has)}, not {_times(wants)})" for name, has, wants in shapes]
        reasons.append(f"of other shapes than config.json says are {listed(pairs)}")
    if foreign:
        reasons.append(f"of unknown names are {listed(list(foreign))}")
    return f"its weights are not those of the model in config.json: {'; '.join(reasons)}"


def _times(shape: Any) -> str:
    return " x ".join(str(size) for size in shape) or "one number"
