"""A profile as a JSON file, and back.

The file is one object: "format" and "version" say what it is, "tokens" has an object for each
token, and all fields are named as in `ProfileResult` and `TokenProfile`. What is missing is null;
there is no NaN. Floats are written so that they come back to the bit.

Files appear whole or not at all: they are written beside their place and then moved there.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from hybridgen.checks import quoted
from hybridgen.profiling.profile import ProfileResult, TokenProfile

FORMAT = "hybridgen.profile"
VERSION = 1

Path = str | os.PathLike[str]
Test = Callable[[Any], bool]


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    place = os.path.realpath(path)
    beside = f"{place}.{secrets.token_hex(4)}.part"
    try:
        with open(beside, "wb") as file:
            file.write(content)
        os.replace(beside, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8; lone surrogates, which it does not have, become question marks."""
    write(path, text.encode("utf-8", "replace"))


def save(profile: ProfileResult, path: Path) -> None:
    """Write `profile` to `path`; an earlier file there is replaced."""
    head = {"format": FORMAT, "version": VERSION}
    values = {field.name: getattr(profile, field.name) for field in fields(profile)}
    del values["tokens"]
    lines = [f"{_json(name)}: {_json(value)}" for name, value in {**head, **values}.items()]
    tokens = ",\n".join(_json(_fields(token)) for token in profile.tokens)
    lines.append(f'"tokens": [\n{tokens}\n]')
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def load(path: Path) -> ProfileResult:
    """The profile that `save` wrote to `path`.

    Raises ValueError that names the file, and what is wrong with it, for another version or kind of
    file and for a damaged one; OSError where it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file, parse_constant=_refuse_constant)
        return _profile(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is no profile that can be read: {error}") from error


def _profile(document: Any) -> ProfileResult:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'it does not say "format": "{FORMAT}"')
    if document.get("version") != VERSION or isinstance(document["version"], bool):
        version = quoted(document.get("version"))
        raise ValueError(f"its version is {version}, and this hybridgen reads version {VERSION}")
    values = {name: each for name, each in document.items() if name not in ("format", "version")}
    _check("the profile", values, _PROFILE)
    tokens = []
    for number, token in enumerate(values["tokens"]):
        _check(f"token {number}", token, _TOKEN)
        tokens.append(TokenProfile(**token))
    return ProfileResult(**{**values, "tokens": tuple(tokens)})


def _check(what: str, values: Any, tests: Mapping[str, Test]) -> None:
    """Raise ValueError unless `values` is an object of exactly these fields, of their types."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {quoted(values)}")
    for name in {**values, **tests}:
        if name not in values:
            raise ValueError(f"{what} has no {name!r}")
        if name not in tests:
            raise ValueError(f"{what} has an unknown {quoted(name)}")
        if not tests[name](values[name]):
            raise ValueError(f"{name!r} of {what} is {quoted(values[name])}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (isinstance(value, float) or _integer(value)) and abs(value) <= sys.float_info.max


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


_TOKEN: dict[str, Test] = {
    "token_id": _integer,
    "token_text": _text,
    "position": _integer,
    "model_used": _text,
    "aleatoric_uncertainty": _or_none(_number),
    "epistemic_uncertainty": _or_none(_number),
    "entropy": _or_none(_number),
    "top_k_probs": _list_of(_number),
    "top_k_ids": _list_of(_integer),
    "top_k_texts": _list_of(_text),
    "accepted": _or_none(_bool),
    "rejected_id": _or_none(_integer),
    "rejected_text": _or_none(_text),
    "p": _or_none(_number),
    "q": _or_none(_number),
}
_PROFILE: dict[str, Test] = {
    "tokens": _list,
    "generated_text": _text,
    "stats": _object,
    "metric": _text,
    "threshold": _or_none(_number),
    "measured_by": _text,
}


def _fields(token: TokenProfile) -> dict[str, Any]:
    return {field.name: getattr(token, field.name) for field in fields(token)}


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
