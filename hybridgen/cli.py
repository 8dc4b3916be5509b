"""The command `hybridgen`: text on stdout, everything else on stderr.

torch is imported only after the arguments have been parsed, so that `--help` answers at once. What
is imported here is as little as can be: until `main` runs, an interrupt ends in a traceback.
"""

from __future__ import annotations

import sys
import warnings

from hybridgen import __version__
from hybridgen.cli_options import (
    add_fields,
    add_models,
    add_system,
    check_options,
    declared,
    in_options,
    load,
    template_kwargs,
)
from hybridgen.cli_terminal import (
    INTERRUPTED,
    abandon_stdout,
    check_stdout,
    check_there_is_a_stdout,
    leave_when_interrupted,
    open_stderr,
    read_stdin,
    say,
    show_warning,
    write,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from hybridgen.generator import HybridGenerator
    from hybridgen.result import GenerationResult
    from hybridgen.strategies.declarations import Declaration

FAILURES = (ValueError, TypeError, RuntimeError, OSError, MemoryError, ImportError, Warning)
READER_GONE = 141  # 128 + SIGPIPE, what a shell reports for any program whose reader has gone
# The first word of a command's own -> the module with its parser and what it does.
COMMANDS = {name: f"hybridgen.cli_{name}" for name in ("chat", "pairs", "profile")}
COMMANDS["bench"] = "hybridgen.benchmarks.command"

DESCRIPTION = """\
A small language model (SLM) and a large one (LLM) continue PROMPT together.
Without --slm, --llm and --pair the pair that ships with hybridgen writes: it
knows Python, needs no download and no GPU.
"""

EPILOG = """\
examples:
  hybridgen "def quicksort(items):"
      the embedded pair, speculative decoding, sampled
  hybridgen "import os" --temperature 0 --max-new-tokens 50 --stop "class "
      greedy; the text ends before "class "
  cat prompt.txt | hybridgen - --stats none > text.txt
      the prompt from stdin, nothing but the text
  hybridgen "Why is the sky blue?" --chat --pair qwen3-8b
      a known pair, asked through its chat template
  hybridgen "Once upon a time" --slm Qwen/Qwen3-0.6B --llm Qwen/Qwen3-8B
      any two models with one tokenizer: hub ids or local folders
  hybridgen - --llm Qwen/Qwen3-8B < report.txt
      one model alone: drafts are looked up in the text, which repeats itself
  hybridgen --file prompts.jsonl --out results.jsonl --seed 1
      many prompts: a JSON string a line, or an object with "prompt" or
      "messages"; started again, it goes on with what is not done
  hybridgen "def area(r):" --strategy entropy --threshold 2.0
      the SLM writes, and asks the LLM for each token it is unsure of
  hybridgen "def area(r):" --verification coupled --seed 7
      the same tokens as --strategy llm --seed 7, sooner

other commands, each with a --help of its own (a prompt of such a word: from
stdin):
  hybridgen chat       a conversation
  hybridgen pairs      known pairs, with what they need
  hybridgen profile    what was measured at each token, to choose a threshold by
  hybridgen bench      how fast it is, beside transformers and others

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
        usage="hybridgen PROMPT [options]\n"
        "       hybridgen --file PROMPTS --out RESULTS [options]\n"
        "       hybridgen {chat,pairs,profile,bench} ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hybridgen {__version__}")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the text to continue; - reads it from stdin"
    )
    add_models(parser)
    chat = parser.add_argument_group("chat")
    chat.add_argument(
        "--chat", action="store_true", help="ask PROMPT through the LLM's chat template"
    )
    add_system(chat)
    add_files(parser)
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


def add_files(parser: argparse.ArgumentParser) -> None:
    """Many prompts in the place of one."""
    add = parser.add_argument_group("many prompts").add_argument
    add("--file", metavar="PROMPTS", help="continue each line of this JSONL file")
    add("--out", metavar="RESULTS", help="add a line of JSON for each there, if it has none")
    add("--batch-size", type=int, metavar="N", help="texts written at once (default: 4)")


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
    parser_of = build_parser
    work: Callable[[argparse.Namespace, Mapping[str, Any]], int | None] = run
    if given[:1] and given[0] in COMMANDS:
        from importlib import import_module

        command = import_module(COMMANDS[given.pop(0)])
        parser_of, work = command.build_parser, command.run
    parser = parser_of(declared(own))
    arguments = parser.parse_args(given)
    if work is run:
        check_usage(parser, arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return work(arguments, own) or 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return READER_GONE
    except FAILURES as error:
        say(f"hybridgen: error: {reason(error, own)}")
        check_stdout()
        return 1
    return 0


def reason(error: BaseException, own: Mapping[str, Any]) -> str:
    """What went wrong, in one line that speaks of options."""
    return in_options(" ".join(str(error).split()), declared(own)) or type(error).__name__


def check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Leave with the usage where options do not go together."""
    if (arguments.prompt is None) == (arguments.file is None):
        parser.error("give a PROMPT, or --file with many")
    if (arguments.file is None) != (arguments.out is None):
        parser.error("--file and --out go together")
    if arguments.system is not None:
        arguments.chat = True
    if arguments.chat_template_kwargs and not arguments.chat:
        parser.error("--chat-template-kwargs is for --chat")


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Load the pair, generate, print."""
    if arguments.file is not None:
        from hybridgen.cli_file import run as run_file

        run_file(arguments, own)
        return
    result = generate(arguments, prompt_of(arguments), own)
    if arguments.no_stream:
        write(result.text)
    if not result.text.endswith("\n"):
        write("\n")
    if arguments.stats == "json":
        import json

        print(json.dumps(result.stats), file=sys.stderr)
    elif arguments.stats == "text":
        from hybridgen.result import format_stats

        print(format_stats(result.stats, [*result.lines, "Seed: {seed}"]), file=sys.stderr)


def prompt_of(arguments: argparse.Namespace) -> str:
    """The prompt, if there is a stdout to answer it on."""
    check_there_is_a_stdout()
    return read_stdin() if arguments.prompt == "-" else arguments.prompt


def generate(
    arguments: argparse.Namespace, prompt: str, own: Mapping[str, Any]
) -> GenerationResult:
    """The call of the library. Options left out keep the library's own defaults."""
    given = check_options(arguments, declared(own))
    kwargs = template_kwargs(arguments.chat_template_kwargs)
    generator = load(arguments, own)
    stream = None if arguments.no_stream else write
    asked = as_chat(generator, prompt, arguments.system, kwargs) if arguments.chat else prompt
    return generator.generate(asked, stream=stream, print_stats=False, **given)


def as_chat(
    generator: HybridGenerator, prompt: Any, system: str | None, kwargs: Mapping[str, Any]
) -> list[int]:
    """The token ids of one turn."""
    from hybridgen.chat import Chat

    return Chat(generator, system, kwargs).opened_by(prompt)
