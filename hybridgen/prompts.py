"""From whatever the user passes as a prompt to token ids.

`Prompt` finds the rows when it is made, and tokenises them when it is asked to: between the two,
everything that is cheap to check has been checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

import numpy as np

from hybridgen.checks import exact_list, has_attribute, quoted, shown

ENCODING = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "length")
CHARACTERS = 16  # of text for each token there is room for: what is tokenised at first
CUT = 1024  # more tokens than may differ where a text is cut: the longest token, in bytes

_ACCEPTED = (
    "{name} must be a string, token ids (ints), chat messages (dicts with a role), what a "
    "tokenizer returns (input_ids and attention_mask), or a list of strings, ids or chats, "
    "got {got}"
)


class Array(Protocol):
    """A tensor or array, of whatever library."""

    @property
    def dtype(self) -> Any: ...

    def __len__(self) -> int: ...

    def tolist(self) -> Any: ...


Ids = list[int] | tuple[int, ...]
Messages = Sequence[Mapping[str, Any]]
OnePrompt = str | Ids | Messages
Prompts = Sequence[OnePrompt | Array]
EncodedPrompt = Array | Mapping[str, Any]
"""One prompt or several, as its shape says."""
AnyPrompt = OnePrompt | Prompts | EncodedPrompt


@dataclass(frozen=True)
class Room:
    """``positions`` of a row, of which ``new_tokens`` must be left for the new text."""

    positions: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """The longest prompt that fits."""
        return self.positions - self.new_tokens

    def check(self, name: str, tokens: int) -> None:
        """ValueError for a prompt of more tokens than fit."""
        if tokens > self.tokens:
            self.refuse(name, f"{tokens} tokens", str(tokens + self.new_tokens))

    def refuse(self, name: str, tokens: str, needed: str) -> NoReturn:
        """ValueError, telling what the prompt has and needs."""
        raise ValueError(
            f"{name} has {tokens}, with max_new_tokens={self.new_tokens} that is {needed} "
            f"positions, but the generator has {self.positions} (max_seq_len, at most the models' "
            f"context); shorten the prompt or lower max_new_tokens"
        )


class Prompt:
    """The rows of a prompt, and their token ids when asked for.

    Accepted: a string; token ids (a list of ints, or an integer tensor or array [T]); chat messages
    (a list of dicts with a role, through the tokenizer's chat template with the generation prompt
    added); a list of any of these, or an integer tensor [B, T], as a batch; and what a tokenizer
    returns, a BatchEncoding or dict with ``input_ids`` and ``attention_mask``, whose padding on
    the left and right is left out.

    A tensor or array without a mask is refused when it looks padded: when a row has the tokenizer's
    pad id at its beginning or end. One that is also the bos or eos id may be there if every row has
    exactly one. Lists of ids are taken as they are.

    Strings get the special tokens that the tokenizer adds by itself, but a string that already
    begins with the bos token (a rendered chat template) does not get a second one.

    max_rows    more rows are a ValueError; None: any number

    Raises TypeError or ValueError naming the prompt.
    """

    def __init__(self, tokenizer: Any, prompt: object, max_rows: int | None = None) -> None:
        self._tokenizer = tokenizer
        mask: object = None
        self._has_mask = False
        if isinstance(prompt, Mapping):
            prompt, mask = _of_encoding(prompt)
            self._has_mask = mask is not None
        rows = _rows(prompt, "prompt", max_rows)
        self.is_batch = rows is not None
        self._rows = [_exact(prompt)] if rows is None else [_exact(row) for row in rows]
        self._masks = self._masks_of(mask) if self._has_mask else [None] * self.rows

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return len(self._rows)

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The prompts that were given as strings, None for any other."""
        return tuple(row if isinstance(row, str) else None for row in self._rows)

    def token_ids(self, room: Room | None = None) -> list[list[int]]:
        """Token ids, one list a row. ValueError for a row that does not fit into ``room``."""
        made = [
            self._row_ids(self._name(i), row, mask, room)
            for i, (row, mask) in enumerate(zip(self._rows, self._masks, strict=True))
        ]
        if not self._has_mask:
            self._check_padding([i for i, row in enumerate(self._rows) if _is_array(row)], made)
        return made

    def _name(self, row: int) -> str:
        return f"prompt[{row}]" if self.is_batch else "prompt"

    def _masks_of(self, mask: object) -> list[Any]:
        masks = _rows(mask, "prompt['attention_mask']", None)
        masks = [mask] if masks is None else masks
        if len(masks) != self.rows:
            raise ValueError(
                f"prompt['attention_mask'] must have a row for each of input_ids ({self.rows}), "
                f"got {len(masks)}"
            )
        return masks

    def _row_ids(self, name: str, row: Any, mask: Any, room: Room | None) -> list[int]:
        if isinstance(row, str):
            return _of_text(self._tokenizer, row, name, room)
        if isinstance(row, list) and row and isinstance(row[0], Mapping):
            return of_chat(self._tokenizer, row, name, room)
        if not (isinstance(row, list) or _is_array(row)):
            _refuse(name, shown(row))
        if room is not None and mask is None:
            room.check(name, len(row))
        return _of_ids(row, name) if mask is None else _unpadded(row, mask, name)

    def _check_padding(self, arrays: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """ValueError where rows ``arrays``, of tensors, seem to be padded."""
        pad = getattr(self._tokenizer, "pad_token_id", None)
        if pad is None:
            return
        marks = [getattr(self._tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
        for edge, step in (("begins", 1), ("ends", -1)):
            counts = [_leading(ids[i][::step], pad) for i in arrays]
            if not any(counts) or (pad in marks and set(counts) == {1}):
                continue
            row, count = next((i, count) for i, count in zip(arrays, counts, strict=True) if count)
            raise ValueError(
                f"{self._name(row)} {edge} with the tokenizer's pad id {pad} ({count} times), and "
                f"there is no mask: the text would depend on the padding. Pass what the tokenizer "
                f"returns (input_ids with attention_mask), or lists of ids without padding"
            )


def _refuse(name: str, got: str) -> NoReturn:
    raise TypeError(_ACCEPTED.format(name=name, got=got))


def _of_encoding(prompt: Mapping[Any, Any]) -> tuple[object, object]:
    """``input_ids`` and ``attention_mask`` (or None) of what a tokenizer returned."""
    try:
        entries = {key: prompt[key] for key in prompt}
    except Exception as error:
        raise TypeError(f"prompt cannot be read: {quoted(str(error))}") from error
    if "input_ids" not in entries:
        _refuse("prompt", shown(prompt))
    for key in entries:
        if key not in ENCODING:
            raise ValueError(f"prompt has {quoted(key)}, which hybridgen's models do not read")
    return entries["input_ids"], entries.get("attention_mask")


def _rows(prompt: object, name: str, max_rows: int | None) -> list[Any] | None:
    """The rows of a batch, or None for a single prompt; an empty list is a single one."""
    rows: Any = _exact(prompt)
    if _is_array(rows):
        if _dimensions(rows, name) == 1:
            return None
    elif isinstance(rows, str) or (isinstance(rows, list) and not (rows and _is_row(rows[0]))):
        return None
    elif not isinstance(rows, list):
        _refuse(name, shown(prompt))
    count = len(rows)
    if max_rows is not None and count > max_rows:
        raise ValueError(
            f"{name} has {count} rows, but the generator was made for "
            f"max_batch_size={max_rows}; pass fewer prompts or a larger max_batch_size"
        )
    return [rows[i] for i in range(count)]


def _is_row(item: object) -> bool:
    """Whether a list that begins with it is a list of prompts, not of ids or messages."""
    return isinstance(item, (str, list, tuple)) or (_is_array(item) and not isinstance(item, Real))


def _exact(value: Any) -> Any:
    """Tuples, and arrays of strings and objects, as lists; subclasses as str and list themselves.

    A subclass may have methods of its own that fail, and libraries look at the real thing anyway.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (list, tuple)):
        return exact_list(value)
    if isinstance(value, np.ndarray) and (value.dtype.kind in "UO" or value.ndim == 0):
        return _exact(value.tolist())
    return value


def _is_array(value: Any) -> bool:
    """A tensor or array, of whatever library."""
    return has_attribute(value, "dtype") and has_attribute(value, "tolist")


def _dimensions(array: Any, name: str) -> int:
    """1 or 2."""
    try:
        dimensions = len(array.shape)
    except Exception as error:  # a nested tensor has no shape
        raise TypeError(f"{name} must be a dense tensor, got {shown(array)}") from error
    if dimensions not in (1, 2):
        raise TypeError(f"{name} must have one or two dimensions, got {dimensions}")
    return dimensions


def _items(row: Any, name: str) -> list[Any]:
    """A list, or an array [T] as one."""
    if isinstance(row, list):
        return row
    kind = str(row.dtype)
    if any(word in kind for word in ("float", "bool", "complex", "time")):
        raise TypeError(f"{name} must have an integer dtype, got a {kind} tensor")
    if _dimensions(row, name) != 1:
        raise TypeError(f"{name} must have one dimension, got {len(row.shape)}")
    try:
        return list(row.tolist())
    except Exception as error:  # it is on the meta device, sparse, quantised, traced
        why = quoted(" ".join(str(error).split()))
        raise TypeError(f"{name} must be a dense tensor that holds its values: {why}") from error


def _of_ids(row: Any, name: str) -> list[int]:
    items = _items(row, name)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            _refuse(name, f"a list with {shown(item)}")
    return [int(item) for item in items]


def _unpadded(row: Any, mask: Any, name: str) -> list[int]:
    """The ids where the mask is 1, which must be in a row."""
    ids = _of_ids(row, name)
    where = f"{name}'s attention_mask"
    if not _is_array(mask) and not isinstance(mask, list):
        raise TypeError(f"{where} must be a list or a tensor, got {shown(mask)}")
    try:
        kept = list(mask.tolist() if _is_array(mask) else mask)
    except Exception as error:
        raise TypeError(f"{where} cannot be read: {quoted(str(error))}") from error
    if len(kept) != len(ids):
        raise ValueError(f"{where} must have {len(ids)} values, as input_ids, got {len(kept)}")
    for value in kept:
        if not isinstance(value, (int, np.integer, np.bool_)) or value not in (0, 1):
            raise ValueError(f"{where} must hold 0 and 1, got {shown(value)}")
    first = _leading(kept, 0)
    count = _leading(kept[first:], 1)
    if any(kept[first + count :]):
        raise ValueError(f"{where} must be 0 only for padding at the edges: it has a 0 inside")
    return ids[first : first + count]


def _leading(values: Sequence[int], wanted: int) -> int:
    """How many values at the beginning are the wanted one."""
    return next((i for i, value in enumerate(values) if value != wanted), len(values))


def _of_text(tokenizer: Any, text: str, name: str, room: Room | None) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode text: {error.reason}") from error
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and text.startswith(bos))
    if room is not None:
        _check_length(tokenizer, text, name, room)
    encoded = tokenizer(text, add_special_tokens=special, verbose=False)
    return list(encoded["input_ids"])


def _check_length(tokenizer: Any, text: str, name: str, room: Room) -> None:
    """ValueError for a text that cannot fit, in time that depends on the room, not on the text.

    A beginning of the text is tokenised. Where the text is cut the tokens may be others than those
    of the whole, but these are few: if the beginning has twice the tokens that fit and some more,
    the whole does not fit. Spaces at the cut are left out if a token after them swallows them.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    swallowing = tuple(token.content for token in added if token.lstrip)
    enough = 2 * room.tokens + CUT
    cut = CHARACTERS * enough
    while cut < len(text):
        swallowed = text[cut:].lstrip().startswith(swallowing)
        beginning = text[:cut].rstrip() if swallowed else text[:cut]
        count = len(tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"])
        if count > enough:
            room.refuse(name, f"more than {count} tokens", f"more than {count + room.new_tokens}")
        cut *= 4


def of_chat(
    tokenizer: Any,
    messages: list[Any],
    name: str = "prompt",
    room: Room | None = None,
    kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Ids of a chat. What a message must have beside its role, the template knows.

    kwargs    what else the template is told
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"{name} is a chat, but the LLM's tokenizer has no chat template")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"{name}[{i}] must be a chat message (a dict), got {shown(message)}")
    options: dict[str, Any] = {"add_generation_prompt": True, **kwargs}
    try:
        roles = ["role" in message for message in messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # templates are programs of the checkpoint: they raise anything
        reason = quoted(" ".join(str(error).split()), 200)
        raise ValueError(f"{name}: the chat template refused the messages: {reason}") from error
    if False in roles:
        raise ValueError(f"{name}[{roles.index(False)}] has no 'role': a chat message has one")
    if room is not None:
        _check_length(tokenizer, text, name, room)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return list(ids)
