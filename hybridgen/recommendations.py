"""What an LLM's generation config recommends: what is taken from it, and what is not applied.

transformers reads these fields when it builds its logits processors and stopping criteria; a value
means here what it means there. A field that is off there says nothing.
"""

from collections.abc import Callable
from typing import Any

from hybridgen.checks import check_float, check_int
from hybridgen.engine.sampling import Sampling
from hybridgen.fields import Checking, Facts, Field
from hybridgen.parameters import SAMPLING, TEMPERATURE
from hybridgen.processors import LOGITS_PROCESSOR, PROCESSORS

SOURCE = "the LLM's generation config"
SMALLEST_TOP_P = 2.0**-126  # keeps the likeliest token, as transformers does with 0


def _above(off: float) -> Callable[[Any], bool]:
    return lambda value: not value <= off


def _other_than(off: float) -> Callable[[Any], bool]:
    return lambda value: value != off


def _between_0_and_1(value: Any) -> bool:
    return bool(not (value <= 0 or value >= 1))


# Fields that change the text and that hybridgen does not apply: whether a value asks for something.
# Lengths are left out: `max_new_tokens` has a default of its own.
NOT_APPLIED: dict[str, Callable[[Any], bool]] = {
    "begin_suppress_tokens": bool,
    "forced_bos_token_id": lambda value: True,
    "forced_eos_token_id": lambda value: True,
    "sequence_bias": bool,
    "exponential_decay_length_penalty": lambda value: True,
    "min_length": _above(0),
    "max_time": lambda value: True,
    "stop_strings": bool,
    "typical_p": lambda value: not value >= 1,
    "top_h": lambda value: True,
    "epsilon_cutoff": _between_0_and_1,
    "eta_cutoff": _between_0_and_1,
    "guidance_scale": _other_than(1),
    "watermarking_config": lambda value: True,
    "remove_invalid_values": bool,
    "token_healing": bool,
    "num_beams": _above(1),
    "num_beam_groups": _above(1),
    "diversity_penalty": _above(0),
    "constraints": bool,
    "force_words_ids": bool,
    "num_return_sequences": _above(1),
    "penalty_alpha": _above(0),
    "dola_layers": bool,
}


def not_applied(generation_config: Any) -> dict[str, Any]:
    """The fields of the config, by name, that ask for something hybridgen does not do."""
    asked = {}
    for name, asks in NOT_APPLIED.items():
        value = getattr(generation_config, name, None)
        if value is None:
            continue
        try:
            silent = not asks(value)
        except Exception:  # of a type that cannot be compared: not an off-value
            silent = False
        if not silent:
            asked[name] = value
    return asked


def sampling_defaults(generation_config: Any, **given: Any) -> dict[str, Any]:
    """The four parameters of `Sampling`, those not given or None taken from the generation config.

    What the checkpoint sets is used (`do_sample=False` is temperature 0); what it does not set is
    off, as `Sampling()` is. `generation_config` may be None. Note that transformers itself would
    fill an unset top_k with 50.

    Raises TypeError or ValueError for a value of the config that cannot be used, saying where it
    is from; what the caller gave is returned unchecked.
    """
    taken = {}
    for field, off in zip(SAMPLING, Sampling(), strict=True):
        value = given.get(field.name)
        taken[field.name] = _recommended(generation_config, field, off) if value is None else value
    return taken


def processing_defaults(generation_config: Any, vocab_size: int) -> dict[str, Any]:
    """The parameters among `PROCESSORS` that the generation config sets, checked.

    Ids from ``vocab_size`` on are never written, and left out. Raises as `sampling_defaults` does.
    """
    asked: dict[str, Any] = {}
    for field in PROCESSORS:
        value = getattr(generation_config, field.name, None)
        if value is not None and field is not LOGITS_PROCESSOR:
            check = _OF_CONFIGS.get(field.name, field.check)
            asked[field.name] = check(f"{field.name} (from {SOURCE})", value, Facts())
    if ids := asked.get("suppress_tokens"):
        asked["suppress_tokens"] = [i for i in ids if i < vocab_size]
    if words := asked.get("bad_words_ids"):
        asked["bad_words_ids"] = [word for word in words if max(word) < vocab_size]
    return asked


def _recommended(config: Any, field: Field, off: float) -> Any:
    """The config's value of one parameter, checked, or what turns it off."""
    do_sample = getattr(config, "do_sample", None)
    if field is TEMPERATURE and do_sample is not None and not do_sample:
        return 0.0
    value = getattr(config, field.name, None)
    if value is None:
        return off
    check = _OF_CONFIGS.get(field.name, field.check)
    return check(f"{field.name} (from {SOURCE})", value, Facts())


def _check_top_k(name: str, value: Any, facts: Facts) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return max(0, check_int(name, value, -1))  # -1 is off, as 0 is


def _check_top_p(name: str, value: Any, facts: Facts) -> float:
    kept = check_float(name, value, "a number >= 0 (1 and more are off)", lambda x: x >= 0)
    return min(kept, 1.0) or SMALLEST_TOP_P


def _check_count(name: str, value: Any, facts: Facts) -> int:
    return max(0, check_int(name, value, -(2**31)))  # below 0 is off


# Where a config may say what a caller may not.
_OF_CONFIGS: dict[str, Checking] = {
    "top_k": _check_top_k,
    "top_p": _check_top_p,
    "no_repeat_ngram_size": _check_count,
    "min_new_tokens": _check_count,
}
