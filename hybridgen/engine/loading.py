"""Read models from a folder or the hub: the one place that does; tokenizers: tokenizers.py.

A model is first looked at (`look`): its config, its files' headers, and its parameters on the meta
device say whether it can be run, at no cost. Then it is loaded. The weights are handed to
transformers as safetensors' slices, so that no other file is ever read, and no code from a
checkpoint runs unless the caller says ``trust_remote_code=True``.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from hybridgen.checks import shown
from hybridgen.engine import checkpoint
from hybridgen.engine.cache import CacheLayout, Footprint
from hybridgen.engine.decoder import Decoder, cache_layout
from hybridgen.engine.dtypes import default_dtype, int8_dtype, is_narrow, kept_dtype, prompt_dtype
from hybridgen.engine.families import FAMILIES, check, check_can_run, lacking
from hybridgen.engine.keys import check_headers, check_keys
from hybridgen.engine.placement import bytes_as_int8, bytes_to_load, check_whole, final_device
from hybridgen.engine.progress import bars_of_transformers
from hybridgen.engine.room import Needs, explained, indexed
from hybridgen.engine.rope import check_rope, context
from hybridgen.engine.transformers_decoder import TransformersDecoder
from hybridgen.engine.transformers_decoder import cache_layout as foreign_layout
from hybridgen.engine.transformers_decoder import max_positions as foreign_positions
from hybridgen.engine.transformers_probe import Facts, probe
from hybridgen.kernels.linear import reads_plain
from hybridgen.pair import LLM_PATH, SLM_PATH

NAMES = ("slm_model_id", "llm_model_id")
Source = str | PathLike[str] | PreTrainedModel


def choose_sources(slm: Any, llm: Any) -> tuple[Any | None, Any]:
    """The models to load; the embedded pair when neither is named, no SLM when the LLM alone is."""
    if slm is None and llm is None:
        return str(SLM_PATH), str(LLM_PATH)
    if llm is None:
        raise ValueError("llm_model_id is None but slm_model_id is not: name the LLM too")
    for name, given in zip(NAMES, (slm, llm), strict=True):
        if given is not None and not isinstance(given, (str, PathLike, PreTrainedModel)):
            raise TypeError(
                f"{name} must be a hub id, a local folder or a loaded transformers model, "
                f"got {shown(given)}"
            )
    return slm, llm


@dataclass(frozen=True)
class Found:
    """A model that has been looked at and can be loaded.

    argument   the name of the caller's argument, for messages ("slm_model_id")
    name       what the caller gave, for messages
    config     the model's, which has been checked
    reason     why the native decoder does not run it; None where it does
    facts      what the probe found; None for a model that the native decoder runs
    dtype      what it is loaded in on a device if the caller names none
    module     the loaded model, or the checkpoint's on the meta device
    int8       the caller's argument that asks for int8 weights ("slm_weights"); None: none does
    narrow     whether it is a checkpoint that `is_narrow`
    """

    argument: str
    name: str
    config: PretrainedConfig
    reason: str | None
    facts: Facts | None
    dtype: Callable[[torch.device], torch.dtype]
    module: PreTrainedModel
    _build: Callable[[torch.device, torch.dtype], tuple[PreTrainedModel, bool]]
    int8: str | None = None
    narrow: bool = False

    def as_int8(self, argument: str) -> "Found":
        """The same, whose products are to have int8 weights, as ``argument`` says.

        A loaded model keeps its own: the int8 ones are copies. Raises ValueError for a model that
        the native decoder does not run.
        """
        if self.reason is not None:
            raise ValueError(
                f"{argument}='int8' takes a model that the native decoder runs, which "
                f"{shown(self.name)} is not: {self.reason}"
            )
        dtype = partial(int8_dtype, self.module) if self._is_checkpoint else self.dtype
        return replace(self, int8=argument, dtype=dtype)

    @property
    def _is_checkpoint(self) -> bool:
        return next(self.module.parameters()).is_meta

    def _chosen(self, device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
        """``dtype``, or the model's own choice. ValueError where int8 does not go with it."""
        chosen = dtype or self.dtype(device)
        on_cpu = final_device(self.module, device).type == "cpu"
        fast = chosen == torch.bfloat16 or (chosen == torch.float32 and reads_plain(chosen))
        if self.int8 and on_cpu and not fast:
            raise ValueError(
                f"{self.int8}='int8' takes dtype='bfloat16' on a CPU, or 'float32' with the extra "
                "cpu: products with int8 weights are slower in any other, "
                f"got {str(chosen).removeprefix('torch.')}"
            )
        return chosen

    def _kept(self, device: torch.device, dtype: torch.dtype) -> torch.dtype:
        """What matrices are kept in where ``dtype`` is computed in."""
        narrow = self.narrow and self.facts is None
        return kept_dtype(dtype, final_device(self.module, device)) if narrow else dtype

    def _bytes_to_load(self, device: torch.device, dtype: torch.dtype) -> int:
        count = bytes_as_int8 if self.int8 else bytes_to_load
        return count(self.module, device, self._kept(device, dtype))

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model is made for, in tokens."""
        return context(self.config) if self.facts is None else foreign_positions(self.config)

    def cache_layout(self, device: torch.device, dtype: torch.dtype | None = None) -> CacheLayout:
        """What the model will keep per position when it is loaded so."""
        chosen = self._chosen(device, dtype)
        if self.facts is None:
            return cache_layout(self.config, device, chosen)
        return foreign_layout(self.facts, device, chosen)

    def footprint(self, device: torch.device, dtype: torch.dtype | None = None) -> Footprint:
        """What the model will take, beyond what it takes now, when it is loaded so."""
        chosen = self._chosen(device, dtype)
        place = final_device(self.module, device)
        return Footprint.of(
            replace(self.cache_layout(device, chosen), device=place),
            self._bytes_to_load(device, chosen),
            self.config.get_text_config().vocab_size,
            chosen,
        )

    def load(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        batch_invariant: bool = True,
    ) -> Decoder | TransformersDecoder:
        """The decoder, native where there is one for the model's type.

        A checkpoint's weights are made int8 one by one, as they go from the host to ``device``.
        Raises ValueError, naming the argument, where that fails.
        """
        place = torch.device(device)
        chosen = self._chosen(place, dtype)

        def needed() -> dict[torch.device, Needs]:
            final = indexed(final_device(self.module, place))
            return {final: Needs(weights=self._bytes_to_load(place, chosen))}

        with named(self.argument, self.name), explained(needed):
            on_host = self.int8 and self._is_checkpoint
            kept = self._kept(place, chosen)
            model, is_ours = self._build(torch.device("cpu") if on_host else place, kept)
            if self.facts is not None:
                return TransformersDecoder(model, batch_invariant, self.facts)
            family = FAMILIES[self.config.model_type]
            computed = None if kept == chosen else chosen
            decoder = Decoder.from_model(model, batch_invariant, family, computed)
            if not decoder.weights.norm.any():
                raise ValueError("its final norm is all zeros: every logit would be 0")
            if is_ours:
                del model
            if self.int8:
                decoder.quantise(place if is_ours else decoder.device)
            elif is_ours:
                decoder.pack()
            if dtype is None and self._is_checkpoint:
                narrow = kept != chosen or self.int8 is not None
                decoder.read_prompts_in(prompt_dtype(chosen, decoder.device, narrow))
        return decoder


def look(
    model: str | PathLike[str] | PreTrainedModel, argument: str, trust_remote_code: bool = False
) -> Found:
    """Whether a local folder, a hub id or a loaded model can be run, before it is loaded.

    A loaded model keeps its dtype unless another is asked for; it is moved to the device (and
    dtype) in place when it is loaded, and shares its weights with the decoder. Raises ValueError,
    naming ``argument``, for what cannot be found, read or run.
    """
    if isinstance(model, PreTrainedModel):
        return _look_at_loaded(model, argument)
    with named(argument, model):
        plan = _plan(model, trust_remote_code, _check_config)
        narrow = is_narrow(plan.blueprint, {header.dtype for header in plan.headers.values()})
        facts = _facts(plan.blueprint)
        return Found(
            argument,
            str(model),
            plan.config,
            lacking(plan.config),
            facts,
            partial(plan.dtype, narrow=narrow and facts is None),
            plan.blueprint,
            lambda *place: (plan.build(*place), True),
            narrow=narrow,
        )


def _look_at_loaded(model: PreTrainedModel, argument: str) -> Found:
    name = model.name_or_path or type(model).__name__
    with named(argument, name):
        checkpoint.check_quantization(getattr(model.config, "quantization_config", None))
        _check_config(model.config)
        check_whole(model)
        if not hasattr(model, "lm_head") and model.get_output_embeddings() is None:
            raise ValueError(f"{type(model).__name__} is no causal language model: it has no head")
        for parameter_name, parameter in model.named_parameters():
            if parameter.is_meta:
                raise ValueError(f"its weights are not loaded: {parameter_name} is on meta")
        for part in ("config", "generation_config"):
            ids = getattr(getattr(model, part, None), "eos_token_id", None)
            checkpoint.end_ids(ids, f"{part}: eos_token_id")
        dtype, facts = next(model.parameters()).dtype, _facts(model)
    return Found(
        argument,
        name,
        model.config,
        lacking(model.config),
        facts,
        lambda _: dtype,
        model,
        lambda *place: (_place(model, *place), False),
    )


def _check_config(config: PretrainedConfig) -> None:
    if lacking(config) is None:
        check(config)
        check_rope(config)
    else:
        check_can_run(config)


def _facts(model: PreTrainedModel) -> Facts | None:
    return None if lacking(model.config) is None else probe(model)


def load(
    model: str | PathLike[str] | PreTrainedModel,
    argument: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    batch_invariant: bool = True,
) -> Decoder | TransformersDecoder:
    """A decoder: `look`, then `Found.load`."""
    return look(model, argument, trust_remote_code).load(device, dtype, batch_invariant)


def load_model(
    model: str | PathLike[str],
    argument: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The transformers model in evaluation mode on ``device``, whatever its kind.

    Raises ValueError as `load` does.
    """
    place = torch.device(device)
    with named(argument, model):
        plan = _plan(model, trust_remote_code, lambda config: None)
        return plan.build(place, dtype or plan.dtype(place, narrow=False))


@contextmanager
def named(argument: str, model: Any, part: str = "") -> Iterator[None]:
    """Whatever goes wrong inside becomes a ValueError that names the argument and the model.

    A damaged file can make its reader raise anything, even the panic of a Rust library, which is
    no Exception. What is not about the file goes through: interrupts, memory, warnings as errors.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, Warning):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        known = isinstance(error, (ValueError, TypeError, OSError))
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        name = shown(str(model)).removesuffix(" (str)")
        raise ValueError(f"{argument}: cannot load {part}{name}: {_shortened(reason)}") from error


def _shortened(reason: str, most: int = 600) -> str:
    return reason if len(reason) <= most else reason[: most - 3] + "..."


@dataclass(frozen=True)
class _Plan:
    """How to make a transformers model of a checkpoint.

    blueprint  the model on the meta device
    """

    name: str
    config: PretrainedConfig
    generation_config: GenerationConfig
    blueprint: PreTrainedModel
    headers: dict[str, checkpoint.Header]

    def dtype(self, device: torch.device, narrow: bool) -> torch.dtype:
        return default_dtype(sum(p.numel() for p in self.blueprint.parameters()), device, narrow)

    def build(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        auto: Any = type(self.blueprint)
        with ExitStack() as files, bars_of_transformers():
            model, report = auto.from_pretrained(
                None,
                config=self.config,
                state_dict=checkpoint.open_slices(self.headers, files),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
        assert isinstance(model, PreTrainedModel)
        check_keys(model, self.name, report)
        model.generation_config = self.generation_config
        return _place(model, device, dtype)


def _plan(
    model: str | PathLike[str],
    trust_remote_code: bool,
    check_config: Callable[[PretrainedConfig], Any],
) -> _Plan:
    """What a checkpoint's files say, checked in the order of what it costs to find out."""
    fetch = checkpoint.find(model)
    raw = checkpoint.read_config(fetch)
    recommended = checkpoint.read_generation_config(fetch)
    config = AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    assert isinstance(config, PretrainedConfig)
    check_config(config)
    _choose_how_to_run(config, raw)
    headers = checkpoint.read_headers(fetch)
    layers = raw.get("num_hidden_layers") or 0
    if layers > len(headers):
        raise ValueError(
            f"config.json: num_hidden_layers is {layers}, but there are {len(headers)} tensors"
        )
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        blueprint = auto.from_config(config, trust_remote_code=trust_remote_code)
    check_headers(blueprint, headers)
    if recommended is None:  # older checkpoints recommend in config.json
        generation_config = GenerationConfig.from_model_config(dict(raw))
    else:
        generation_config = GenerationConfig.from_dict(recommended)
    return _Plan(str(model), config, generation_config, blueprint, headers)


def _choose_how_to_run(config: PretrainedConfig, raw: dict[str, Any]) -> None:
    """Undo what a config says of how transformers is to read and run the model.

    It may name attention that is not installed, code on a hub, or another file. Our decoders have
    their own attention; for a model that transformers is to run, None is transformers' choice:
    sdpa where the model has it, else eager. fp8 weights are multiplied by their scales, whatever
    device there is.
    """
    config._attn_implementation = None
    for name in ("_experts_implementation", "fusion_config", "transformers_weights"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    if raw.get("quantization_config") is not None:
        config.quantization_config = {**raw["quantization_config"], "dequantize": True}


def _place(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    module: Any = model  # `to` is decorated beyond what its annotation says
    current = next(model.parameters())
    device = final_device(model, device)
    if (current.device, current.dtype) != (device, dtype):
        module.to(device=device, dtype=dtype)
    module.eval()
    return model
