"""The options that the commands share: what they are, what is checked of them, and what they load.

Nothing here imports torch before `load`.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from typing import get_args

from hybridgen.cli_terminal import notice
from hybridgen.names import DtypeName, WeightsName

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from hybridgen.fields import Field
    from hybridgen.generator import HybridGenerator
    from hybridgen.strategies.declarations import Declaration

# Arguments of the library beside the fields of `generate`, and what they are called here.
OPTIONS = {
    "slm_model_id": "--slm",
    "llm_model_id": "--llm",
    "max_batch_size": "--batch-size",
    "max_seq_len": "--max-seq-len",
    "slm_weights": "--slm-weights",
    "llm_weights": "--llm-weights",
    **{name: f"--{name}" for name in ("strategy", "pair", "device", "dtype")},
}
LARGEST = 2**31 - 1
RESERVED = ("tokenize", "return_dict", "return_tensors", "conversation")


def add_models(parser: argparse.ArgumentParser) -> None:
    """What is to be loaded, and how."""
    add = parser.add_argument_group("models").add_argument
    add("--slm", metavar="MODEL", help="small model: hub id or local folder")
    add("--llm", metavar="MODEL", help="large model, same tokenizer; alone, it drafts by lookup")
    add("--pair", metavar="NAME", help="both, by a name that `hybridgen pairs` lists")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--dtype", choices=get_args(DtypeName), help="(default: by device)")
    for model in ("slm", "llm"):
        add(
            f"--{model}-weights",
            choices=get_args(WeightsName),
            help=f"a byte a weight for the {model.upper()} (default: those of its dtype)",
        )
    add(
        "--max-seq-len",
        type=int,
        metavar="N",
        help="most tokens of prompt and text together (default: the LLM's context, at most 4096)",
    )


def add_prompt_and_models(parser: argparse.ArgumentParser) -> None:
    """A prompt that must be there, and what continues it."""
    parser.add_argument(
        "prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin"
    )
    add_models(parser)


def add_system(group: argparse._ArgumentGroup) -> None:
    """What a chat begins with, and what its template is told."""
    group.add_argument("--system", metavar="TEXT", help="the system prompt of the chat")
    group.add_argument(
        "--chat-template-kwargs",
        action="append",
        metavar="KEY=VALUE",
        help="for the template, such as enable_thinking=false; values are JSON, else strings; "
        "several may be given",
    )


def add_fields(
    parser: argparse.ArgumentParser,
    declarations: Sequence[Declaration],
    default: str | None,
    shown: str,
    instead: Sequence[Field] = (),
) -> None:
    """The parameters of `generate`, in their groups; ``default`` strategy, as it is ``shown``.

    instead    fields in the place of those of the same name
    """
    from hybridgen.fields import merged
    from hybridgen.parameters import FIELDS
    from hybridgen.strategies.declarations import help_line

    fields = merged(FIELDS, *(each.options for each in declarations), instead)
    named = dict.fromkeys(["strategy", *(field.group for field in fields if field.group)])
    groups = {name: parser.add_argument_group(name) for name in named}
    groups["strategy"].add_argument(
        "--strategy",
        choices=[each.name for each in declarations],
        default=default,
        help="; ".join(f"{each.name}: {each.help}" for each in declarations).replace("%", "%%")
        + f" (default: {shown})",
    )
    for name, group in groups.items():
        for field in fields:
            if field.group == name:
                add_option(group, field, help_line(field, declarations))


def add_option(group: argparse._ArgumentGroup, field: Field, help_line: str) -> None:
    """The field as an option of its group."""
    from argparse import BooleanOptionalAction

    default = field.unset or field.default
    shown = help_line if default is None else f"{help_line} (default: {default})"
    keywords = dict(getattr(field.check, "argument", {}))
    if keywords.get("type") is bool:
        keywords = {"action": BooleanOptionalAction}
    elif "choices" not in keywords:
        keywords["metavar"] = field.metavar
    group.add_argument(option_name(field.name), help=shown.replace("%", "%%"), **keywords)


def option_name(name: str) -> str:
    """An argument of the library as it is called here."""
    return OPTIONS.get(name) or "--" + name.replace("_", "-")


def in_options(message: str, declarations: Sequence[Declaration]) -> str:
    """The library's message, which names its arguments, naming the command's options.

    An argument's name that is also a word is one at the beginning, or before a =.
    """
    from hybridgen.fields import merged
    from hybridgen.parameters import FIELDS

    fields = merged(FIELDS, *(each.options for each in declarations))
    known = [field.name for field in fields if field.group] + [*OPTIONS]
    alone = r"(?<![\w/.-])"  # and no part of a path
    names = "|".join(name for name in known if "_" in name)
    words = "|".join(name for name in known if "_" not in name)
    found = rf"{alone}(?:{names})(?![\w/-])|^(?:{words})(?= must )|{alone}(?:{words})(?==)"
    named = re.sub(found, lambda match: option_name(match[0]), message)
    return re.sub(r"(--[a-z-]+)='([\w.-]+)'", r"\1=\2", named)


def declared(own: Mapping[str, Any]) -> list[Declaration]:
    """The declarations of all strategies, each under the name by which it is chosen."""
    from dataclasses import replace

    from hybridgen.strategies.declarations import BUILT_IN, Declaration

    found = {each.name: each for each in BUILT_IN}
    for name, strategy in own.items():
        found[name] = replace(strategy.declaration or Declaration(name, "your own"), name=name)
    return list(found.values())


def check_options(
    arguments: argparse.Namespace, declarations: Sequence[Declaration]
) -> dict[str, Any]:
    """The options of `generate` given, by name; whatever no pair would accept is refused."""
    from hybridgen.engine.sampling import Sampling
    from hybridgen.fields import Facts, merged
    from hybridgen.parameters import FIELDS
    from hybridgen.prompts import Prompt
    from hybridgen.request import check_request

    positions = check_models(arguments)
    every = merged(FIELDS, *(each.options for each in declarations))
    given = {
        field.name: value
        for field in every
        if (value := getattr(arguments, field.name, None)) is not None
    }
    chosen = next(each for each in declarations if each.name == arguments.strategy)
    fields = merged(FIELDS, chosen.options)
    facts = Facts(max_positions=positions)
    check_request(Prompt(None, [0]), Sampling()._asdict() | given, facts, fields)
    return given


def check_models(arguments: argparse.Namespace) -> int:
    """Refuse what cannot be loaded, as far as the arguments tell; the positions there may be."""
    from hybridgen.checks import check_int
    from hybridgen.named_pairs import models_of

    slm, llm = models_of(arguments.pair, arguments.slm, arguments.llm)
    if slm is not None and llm is None:
        raise ValueError("--slm is given without --llm: name the LLM too")
    if getattr(arguments, "batch_size", None) is not None:
        check_int("max_batch_size", arguments.batch_size, 1, LARGEST)
    if arguments.max_seq_len is None:
        return sys.maxsize
    return check_int("max_seq_len", arguments.max_seq_len, 2, LARGEST)


def template_kwargs(given: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE of --chat-template-kwargs, by key."""
    import json

    found = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not equals or not key.isidentifier() or key in RESERVED:
            raise ValueError(f"--chat-template-kwargs must be KEY=VALUE, got {one!r}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def load(arguments: argparse.Namespace, own: Mapping[str, Any]) -> HybridGenerator:
    """The generator of the models that the arguments name; a terminal is told meanwhile."""
    with notice.shown(f"loading {named_models(arguments)} ..."):
        silence_libraries()
        from hybridgen.generator import HybridGenerator

        sizes = {
            "pair": arguments.pair,
            "max_seq_len": arguments.max_seq_len,
            "max_batch_size": getattr(arguments, "batch_size", None),
            "slm_weights": arguments.slm_weights,
            "llm_weights": arguments.llm_weights,
        }
        generator = HybridGenerator(
            arguments.slm,
            arguments.llm,
            device=arguments.device,
            dtype=arguments.dtype,
            **{name: value for name, value in sizes.items() if value is not None},
        )
    if own:
        generator.strategies.update(own)
    return generator


def named_models(arguments: argparse.Namespace) -> str:
    """What is loaded, in words."""
    from hybridgen.named_pairs import models_of

    models = [name for name in models_of(arguments.pair, arguments.slm, arguments.llm) if name]
    return " and ".join(models) or "the embedded pair"


def silence_libraries() -> None:
    """Keep what libraries have to say off the terminal, unless the user asked them to speak."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="hybridgen")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # on a terminal, a download of gigabytes shows its progress
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    disable_progress_bar: Callable[[], None] = logging.disable_progress_bar
    disable_progress_bar()
