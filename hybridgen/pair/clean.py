"""Which source files are worth learning from: hand-written, English, and not seen before."""

import ast
import re
import warnings
import zlib

# Rules of thumb for a file, checked by eye on what they drop.
MAX_BYTES = 150_000
MIN_BYTES = 200
MAX_LINE = 400
MAX_NON_ASCII = 0.01
MAX_TABLE_LINES = 0.3
GENERATED = re.compile(
    r"auto-?_?\s?generated|generated (by|from|automatically|using)|do not (edit|modify)|@generated",
    re.IGNORECASE,
)
HEADER = 1500
LITERAL = re.compile(r"""\b\d[\w.]*|[rbuf]?'[^']*'|[rbuf]?"[^"]*"|\b(?:None|True|False)\b""")
LICENCE = re.compile(r"copyright|licen[sc]e|spdx", re.IGNORECASE)

SHINGLE = 4
KEPT_SHINGLES = 4  # one in so many, by its hash: enough to tell a copy by
MAX_SEEN = 0.5

FUNCTION_LINES = range(3, 41)


def clean(text: str) -> str | None:
    """The text without a licence's header, or None for a file that teaches little."""
    text = strip_header(text.replace("\r\n", "\n").lstrip("\ufeff"))
    lines = [line for line in text.splitlines() if line.strip()]
    if not MIN_BYTES <= len(text.encode()) <= MAX_BYTES or GENERATED.search(text[:HEADER]):
        return None
    if max(map(len, lines)) > MAX_LINE:
        return None
    if not text.isascii() and sum(c > "\x7f" for c in text) > MAX_NON_ASCII * len(text):
        return None
    if sum(is_table(line) for line in lines) > MAX_TABLE_LINES * len(lines):
        return None
    return text if parse(text) else None


def strip_header(text: str) -> str:
    """Without the comments on top, where they hold a licence: thousands of files share them."""
    lines = text.splitlines(keepends=True)
    count = next((i for i, x in enumerate(lines) if x.strip() and not x.startswith("#")), 0)
    return "".join(lines[count:]) if LICENCE.search("".join(lines[:count])) else text


def is_table(line: str) -> bool:
    """True for a row of data: numbers, strings and punctuation alone, and no docstring."""
    rest, count = LITERAL.subn("", line)
    return count > 0 and '"""' not in line and not re.search(r"[\w=#]", rest)


def parse(text: str) -> ast.Module | None:
    """The syntax tree, or None for what the running Python cannot read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def functions(text: str) -> list[str]:
    """The small functions and classes of a file's outermost level, each whole."""
    tree = parse(text)
    lines = text.splitlines()
    found = []
    for node in tree.body if tree else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if (node.end_lineno or 0) - start + 1 in FUNCTION_LINES:
                found.append("\n".join(lines[start - 1 : node.end_lineno]) + "\n")
    return found


class Seen:
    """Tells near-duplicates: texts that share most runs of four lines with earlier ones."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, text: str) -> bool:
        """Remember the text; True when it was new, and False for a near-duplicate."""
        lines = [line.strip().encode() for line in text.splitlines() if line.strip()]
        shingles = (b"\n".join(lines[i : i + SHINGLE]) for i in range(len(lines) - SHINGLE + 1))
        hashes = {h for h in map(zlib.crc32, shingles) if h % KEPT_SHINGLES == 0}
        known = len(hashes & self._hashes)
        self._hashes |= hashes
        return known <= MAX_SEEN * len(hashes)
