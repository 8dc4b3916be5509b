"""Which tokens show which part of a text.

A token's text need not be a character: one that spans several tokens belongs to them all. Nor is a
token's text always what is seen: a stop string cuts it.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from hybridgen.prefix import common_prefix
from hybridgen.profiling.profile import ProfileResult, TokenProfile

_JOINER = "\u200d"


@dataclass(frozen=True)
class Span:
    """A part of the text and the tokens that wrote it; either may be empty, not both."""

    text: str
    tokens: tuple[TokenProfile, ...]


def spans(profile: ProfileResult) -> list[Span]:
    """The text in parts that are characters as seen; the parts together are the text exactly.

    All tokens are in one of them, in their order. Text that no token wrote comes last.
    """
    parts = []
    place = 0
    for tokens in _groups(profile.tokens):
        written = "".join(token.token_text for token in tokens)
        text = profile.generated_text[place : place + len(written)]
        seen = text[: common_prefix(written, text)]
        parts.append(Span(seen, tuple(tokens)))
        place += len(seen)
    rest = profile.generated_text[place:]
    return [*parts, Span(rest, ())] if rest else parts


def _groups(tokens: tuple[TokenProfile, ...]) -> Iterator[list[TokenProfile]]:
    """Tokens by the character as seen that they end in; those without text at the end alone."""
    group: list[TokenProfile] = []
    written = ""
    for token in tokens:
        if written and not _continues(written, token.token_text):
            yield group
            group, written = [], ""
        group.append(token)
        written += token.token_text
    yield from [group] if written else [[token] for token in group]


def _continues(before: str, text: str) -> bool:
    """Whether `text` changes the look of the character that it follows."""
    if before.endswith(_JOINER):
        return True
    first = text[:1]
    is_mark = bool(first) and unicodedata.category(first) in ("Mn", "Mc", "Me")
    return is_mark or first == _JOINER or "\U0001f3fb" <= first <= "\U0001f3ff"
