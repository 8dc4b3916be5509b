"""The command `hybridgen`: text on stdout, everything else on stderr.

torch is imported only after the arguments have been parsed, so that `--help` answers at once. What
is imported here is as little as can be: until `main` runs, an interrupt ends in a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings

from hybridgen import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from hybridgen.fields import Field
    from hybridgen.generator import HybridGenerator
    from hybridgen.result import GenerationResult
    from hybridgen.strategies.declarations import Declaration

FAILURES = (ValueError, TypeError, RuntimeError, OSError, MemoryError, ImportError, Warning)
INTERRUPTED = 128 + signal.SIGINT
READER_GONE = 141  # 128 + SIGPIPE, what a shell reports for any program whose reader has gone

DESCRIPTION = """\
A small language model (SLM) and a large one (LLM) continue PROMPT together.
Without --slm and --llm the pair that ships with hybridgen writes: it knows
Python, needs no download and no GPU.
"""

EPILOG = """\
examples:
  hybridgen "def quicksort(items):"
      the embedded pair, speculative decoding, sampled
  hybridgen "import os" --temperature 0 --max-new-tokens 50 --stop "class "
      greedy; the text ends before "class "
  cat prompt.txt | hybridgen - --stats none > text.txt
      the prompt from stdin, nothing but the text
  hybridgen "Once upon a time" --slm Qwen/Qwen3-0.6B --llm Qwen/Qwen3-8B
      any two models with one tokenizer: hub ids or local folders
  hybridgen - --llm Qwen/Qwen3-8B < report.txt
      one model alone: drafts are looked up in the text, which repeats itself
  hybridgen "def area(r):" --strategy entropy --threshold 2.0
      the SLM writes, and asks the LLM for each token it is unsure of
  hybridgen "def area(r):" --verification coupled --seed 7
      the same tokens as --strategy llm --seed 7, sooner
  hybridgen profile "def area(r):" --html report.html
      what was measured at each token, to choose a threshold by; see
      hybridgen profile --help (the prompt "profile" itself: from stdin)

exit status:
  0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted,
  141 the reader of stdout went away
"""


def build_parser(declarations: Sequence[Declaration] | None = None) -> argparse.ArgumentParser:
    """The command's arguments; options not given are None, for what `generate` takes by default.

    declarations    of the strategies to choose from; None: of the built-in ones
    """
    import argparse

    from hybridgen.parameters import STRATEGY
    from hybridgen.strategies.declarations import BUILT_IN

    declarations = BUILT_IN if declarations is None else declarations
    parser = argparse.ArgumentParser(
        prog="hybridgen",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hybridgen {__version__}")
    add_prompt_and_models(parser)
    add_fields(parser, declarations, STRATEGY.default, "%(default)s")
    add = parser.add_argument_group("output").add_argument
    add(
        "--stats",
        choices=("text", "json", "none"),
        default="text",
        help="statistics on stderr: a block, one JSON object, or nothing (default: %(default)s)",
    )
    add("--no-stream", action="store_true", help="print the text when it is complete")
    return parser


def add_prompt_and_models(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    parser.add_argument(
        "prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin"
    )
    add = parser.add_argument_group("models").add_argument
    add("--slm", metavar="MODEL", help="small model: hub id or local folder")
    add("--llm", metavar="MODEL", help="large model, same tokenizer; alone, it drafts by lookup")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: by device)")


def add_fields(
    parser: argparse.ArgumentParser,
    declarations: Sequence[Declaration],
    default: str | None,
    shown: str,
) -> None:
    """The parameters of `generate`, in their groups; ``default`` strategy, as it is ``shown``."""
    from hybridgen.fields import merged
    from hybridgen.parameters import FIELDS
    from hybridgen.strategies.declarations import help_line

    fields = merged(FIELDS, *(each.options for each in declarations))
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
    group.add_argument(
        "--" + field.name.replace("_", "-"), help=shown.replace("%", "%%"), **keywords
    )


def main(argv: Sequence[str] | None = None, strategies: Mapping[str, Any] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments); return its exit status.

    strategies    your own by name, beside the built-in ones: their declared options become options
                  of the command

    The process is the command's from then on: an interrupt ends it at once.
    """
    leave_when_interrupted()
    if sys.stderr is None:
        open_stderr()
    own = strategies or {}
    given = sys.argv[1:] if argv is None else [*argv]
    parser_of, work = build_parser, run
    if given[:1] == ["profile"]:
        from hybridgen import cli_profile

        parser_of, work, given = cli_profile.build_parser, cli_profile.run, given[1:]
    arguments = parser_of(declared(own)).parse_args(given)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            work(arguments, own)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return READER_GONE
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"hybridgen: error: {reason}", file=sys.stderr)
        check_stdout()
        return 1
    return 0


def declared(own: Mapping[str, Any]) -> list[Declaration]:
    """The declarations of all strategies, each under the name by which it is chosen."""
    from dataclasses import replace

    from hybridgen.strategies.declarations import BUILT_IN, Declaration

    found = {each.name: each for each in BUILT_IN}
    for name, strategy in own.items():
        found[name] = replace(strategy.declaration or Declaration(name, "your own"), name=name)
    return list(found.values())


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Load the pair, generate, print."""
    result = generate(arguments, prompt_of(arguments), own)
    if arguments.no_stream:
        write(result.text)
    if not result.text.endswith("\n"):
        write("\n")
    if arguments.stats == "json":
        import json

        print(json.dumps(result.stats), file=sys.stderr)
    elif arguments.stats == "text":
        print(result.summary, file=sys.stderr)


def prompt_of(arguments: argparse.Namespace) -> str:
    """The prompt, if there is a stdout to answer it on."""
    if sys.stdout is None:
        raise ValueError("stdout is closed: there is nowhere to write the text")
    return read_stdin() if arguments.prompt == "-" else arguments.prompt


def generate(
    arguments: argparse.Namespace, prompt: str, own: Mapping[str, Any]
) -> GenerationResult:
    """The call of the library. Options left out keep the library's own defaults."""
    given = check_options(arguments, declared(own))
    generator = load(arguments, own)
    stream = None if arguments.no_stream else write
    return generator.generate(prompt, stream=stream, print_stats=False, **given)


def load(arguments: argparse.Namespace, own: Mapping[str, Any]) -> HybridGenerator:
    """The generator of the models that the arguments name."""
    silence_libraries()
    from hybridgen.generator import HybridGenerator

    generator = HybridGenerator(
        arguments.slm, arguments.llm, device=arguments.device, dtype=arguments.dtype
    )
    if own:
        generator.strategies.update(own)
    return generator


def check_options(
    arguments: argparse.Namespace, declarations: Sequence[Declaration]
) -> dict[str, Any]:
    """The options given, by name; those that no pair would accept are refused."""
    from hybridgen.engine.sampling import Sampling
    from hybridgen.fields import Facts, merged
    from hybridgen.parameters import FIELDS
    from hybridgen.prompts import Prompt
    from hybridgen.request import check_request

    every = merged(FIELDS, *(each.options for each in declarations))
    given = {
        field.name: value
        for field in every
        if (value := getattr(arguments, field.name, None)) is not None
    }
    chosen = next(each for each in declarations if each.name == arguments.strategy)
    fields = merged(FIELDS, chosen.options)
    check_request(Prompt(None, [0]), Sampling()._asdict() | given, Facts(), fields)
    return given


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


def show_warning(message: Warning | str, *where: Any, **kwargs: Any) -> None:
    """A warning as one line on stderr."""
    print(f"hybridgen: warning: {' '.join(str(message).split())}", file=sys.stderr)


def read_stdin() -> str:
    """All of stdin, as it is: a final newline is part of the prompt."""
    if sys.stdin is None:
        raise ValueError("the prompt is -, but stdin is closed")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on stdin is not UTF-8: {error}") from error


def write(piece: str) -> None:
    """Send text to stdout now, replacing what its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(piece.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def leave_when_interrupted() -> None:
    """Let SIGINT end the process at once, quietly, whichever library is running or importing.

    A KeyboardInterrupt would come up anywhere, and some of them catch it or turn it into another
    error. Nothing needs to be cleaned up. A signal that the parent has set to be ignored stays so.
    """

    def leave(*signal_and_frame: Any) -> NoReturn:
        with contextlib.suppress(OSError):
            os.write(2, b"\n")
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def open_stderr() -> None:
    """Give a process that was started without stderr one that leads nowhere.

    Without it, `print` would write to stdout, and the next file opened would get what C code says.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != 2:
        os.dup2(nowhere, 2)
        os.close(nowhere)
    sys.stderr = os.fdopen(2, "w")


def check_stdout() -> None:
    """Abandon stdout where it takes no more, a full disk say."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        abandon_stdout()


def abandon_stdout() -> None:
    """Point stdout at nothing, or Python would complain about it once more as it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
