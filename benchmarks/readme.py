"""Marked sections of Markdown files: what stands between the marks is written by a program.

<!-- bench: NAME begin -->
...
<!-- bench: NAME end -->
"""

import re
from collections.abc import Callable, Mapping

SECTION = re.compile(
    r"(?P<begin><!-- bench: (?P<name>[\w-]+) begin -->\n)"
    r"(?P<body>.*?)"
    r"(?P<end><!-- bench: (?P=name) end -->)",
    re.DOTALL,
)


def sections(text: str) -> dict[str, str]:
    """Name -> what stands in it now, of all marked sections of a file."""
    found = {match["name"]: match["body"].removesuffix("\n") for match in SECTION.finditer(text)}
    marks = text.count("<!-- bench:")
    if marks != 2 * len(found):
        raise ValueError(f"{marks} marks make {len(found)} sections: each has one begin, one end")
    return found


def filled(text: str, contents: Mapping[str, Callable[[], str]]) -> str:
    """``text`` with each marked section's content written anew; KeyError for an unknown name."""
    sections(text)  # or say which mark is missing
    return SECTION.sub(lambda it: f"{it['begin']}{contents[it['name']]()}\n{it['end']}", text)
