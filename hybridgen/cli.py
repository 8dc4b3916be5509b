"""The command `hybridgen`: text on stdout, everything else on stderr.

torch is imported only after the arguments have been parsed, so that `--help` answers at once.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hybridgen import __version__

if TYPE_CHECKING:
    from hybridgen.result import GenerationResult

STRATEGIES = ("speculative", "uncertainty", "entropy", "llm", "slm")
PASSED_ON = (
    "strategy",
    "num_drafts",
    "verification",
    "threshold",
    "llm_fraction",
    "llm_consecutive_tokens",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
)
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
  hybridgen "def area(r):" --strategy entropy --threshold 2.0
      the SLM writes, and asks the LLM for each token it is unsure of
  hybridgen "def area(r):" --verification coupled --seed 7
      the same tokens as --strategy llm --seed 7, sooner

exit status:
  0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted,
  141 the reader of stdout went away
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; defaults of None are those of `HybridGenerator.generate`."""
    parser = argparse.ArgumentParser(
        prog="hybridgen",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    add("--version", action="version", version=f"hybridgen {__version__}")

    add = parser.add_argument_group("models").add_argument
    add("--slm", metavar="MODEL", help="small model: hub id or local folder")
    add("--llm", metavar="MODEL", help="large model with the same tokenizer")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: by device)")

    add = parser.add_argument_group("strategy").add_argument
    add(
        "--strategy",
        choices=STRATEGIES,
        default="speculative",
        help="speculative: the SLM drafts, the LLM verifies, and the text is the LLM's; "
        "uncertainty, entropy: the SLM writes and the LLM takes over where the SLM is unsure; "
        "llm, slm: one model alone (default: %(default)s)",
    )
    add("--num-drafts", type=int, metavar="K", help="drafts a round, 1 to 15 (default: 4)")
    add(
        "--verification",
        choices=("rejection", "coupled"),
        help="rejection: the LLM's distribution; coupled: the LLM's very tokens for the seed "
        "(default: rejection)",
    )
    add("--threshold", type=float, metavar="X", help="the LLM takes over above it (by strategy)")
    add("--llm-fraction", type=float, metavar="F", help="instead: the LLM's share, 0 to 1")
    add(
        "--llm-consecutive-tokens", type=int, metavar="N", help="tokens it writes then (default: 1)"
    )

    add = parser.add_argument_group("sampling").add_argument
    add("--max-new-tokens", type=int, metavar="N", help="(default: 200)")
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: the LLM's, or 1)")
    add("--top-k", type=int, metavar="K", help="0 is off (default: the LLM's, or off)")
    add("--top-p", type=float, metavar="P", help="1 is off (default: the LLM's, or off)")
    add("--min-p", type=float, metavar="P", help="0 is off (default: the LLM's, or off)")
    add("--seed", type=int, help="(default: drawn, and reported in the statistics)")
    add("--stop", action="append", metavar="TEXT", help="end before TEXT; may be repeated")

    add = parser.add_argument_group("output").add_argument
    add(
        "--stats",
        choices=("text", "json", "none"),
        default="text",
        help="statistics on stderr: a block, one JSON object, or nothing (default: %(default)s)",
    )
    add("--no-stream", action="store_true", help="print the text when it is complete")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments); return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            run(arguments)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return READER_GONE
    except (
        ValueError,
        TypeError,
        RuntimeError,
        OSError,
        MemoryError,
        ImportError,
        Warning,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"hybridgen: error: {reason}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Load the pair, generate, print."""
    prompt = read_stdin() if arguments.prompt == "-" else arguments.prompt
    result = generate(arguments, prompt)
    if arguments.no_stream:
        write(result.text)
    if not result.text.endswith("\n"):
        write("\n")
    if arguments.stats == "json":
        print(json.dumps(result.stats), file=sys.stderr)
    elif arguments.stats == "text":
        from hybridgen.result import format_stats

        print(format_stats(result.stats), file=sys.stderr)


def generate(arguments: argparse.Namespace, prompt: str) -> "GenerationResult":
    """The call of the library. Options left out keep the library's own defaults."""
    silence_libraries()
    from hybridgen.generator import HybridGenerator

    given = {name: value for name in PASSED_ON if (value := getattr(arguments, name)) is not None}
    check_options(given)
    generator = HybridGenerator(
        arguments.slm, arguments.llm, device=arguments.device, dtype=arguments.dtype
    )
    stream = None if arguments.no_stream else write
    return generator.generate(prompt, stream=stream, print_stats=False, **given)


def check_options(given: dict[str, Any]) -> None:
    """Refuse, before models are loaded, what no pair would accept."""
    from hybridgen.request import make_request

    make_request(
        prompt_ids=[[0]],
        vocab_size=sys.maxsize,
        max_positions=sys.maxsize,
        max_batch_size=1,
        **given,
    )


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
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on stdin is not UTF-8: {error}") from error


def write(piece: str) -> None:
    """Send text to stdout now, replacing what its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(piece.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def abandon_stdout() -> None:
    """Point stdout at nothing, or Python would complain about the pipe once more as it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
