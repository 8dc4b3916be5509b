"""Damaged checkpoints: an error that names the argument, soon, or a generator that works."""

import json
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair

from hybridgen import HybridGenerator

JSON = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
WEIGHTS = "model.safetensors"
PATIENCE = 10.0  # seconds, where a healthy checkpoint takes 0.2
ODD = [
    None,
    True,
    -1,
    0,
    3,
    1.5,
    1e308,
    float("nan"),
    10**9,
    2**70,
    "",
    "x",
    "../x",
    [],
    [None],
    [[1]],
    {},
    {"a": None},
]
# Fields that checkpoints have elsewhere.
EXTRA: dict[str, Any] = {
    "config.json": {
        "quantization_config": None,
        "attn_implementation": None,
        "auto_map": None,
        "torch_dtype": None,
        "rope_scaling": None,
        "rope_theta": None,
        "num_labels": None,
        "text_config": None,
        "transformers_weights": None,
    },
    "tokenizer_config.json": {
        "added_tokens_decoder": None,
        "bos_token": None,
        "auto_map": None,
        "chat_template": None,
    },
}
Way = tuple[Any, ...]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def fields(value: Any, depth: int, before: Way = ()) -> Iterator[Way]:
    """The ways to the fields of a JSON file, the first few of long lists."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = list(enumerate(value))[:2]
    for key, inner in list(items)[:40]:
        yield (*before, key)
        if depth > 1:
            yield from fields(inner, depth - 1, (*before, key))


def odd_field(folder: Path, draw: random.Random) -> str:
    """A JSON file with one odd value."""
    file = draw.choice(JSON)
    content = {**EXTRA.get(file, {}), **json.loads((folder / file).read_text())}
    # tokenizers aborts the process, beyond any handler, when this prefix is none of its tokens'
    ways = [way for way in fields(content, 3) if way[-1] != "continuing_subword_prefix"]
    way = draw.choice(ways)
    value = draw.choice([*ODD, nested(900)])
    holder: Any = content
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    (folder / file).write_text(json.dumps(content))
    return f"{file}: {way} is {str(value)[:40]}"


def odd_header(folder: Path, draw: random.Random) -> str:
    """Weights with an odd header."""
    content = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = draw.choice([name for name in header if name != "__metadata__"])
    dtypes, shapes = ["I8", "BOOL", "F64", "F4", "C64"], [[0], [1, 2, 3], [2**62, 2**62], [-1, 5]]
    changes: list[Callable[[], Any]] = [
        lambda: header.update({name: draw.choice(ODD)}),
        lambda: header[name].update(dtype=draw.choice([*dtypes, *ODD])),
        lambda: header[name].update(shape=draw.choice([*shapes, *ODD])),
        lambda: header[name].update(data_offsets=draw.choice([*shapes, *ODD])),
        lambda: header.pop(name),
        lambda: header.update({draw.choice(["", "\0", f"{name}x"]): header.pop(name)}),
        lambda: header.update(__metadata__=draw.choice(ODD)),
    ]
    index = draw.randrange(len(changes))
    changes[index]()
    encoded = json.dumps(header).encode()
    stated = draw.choice([len(encoded)] * 5 + [0, 2**63, 2**40, len(encoded) + 1])
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", stated) + encoded + content[8 + size :])
    return f"change {index} of {name}, length {stated}"


def odd_bytes(folder: Path, draw: random.Random) -> str:
    """A file that was cut short, or in which bytes were changed."""
    file = draw.choice([*JSON, WEIGHTS])
    content = bytearray((folder / file).read_bytes())
    near = min(len(content), 4000)
    if draw.random() < 0.4:
        del content[draw.randrange(len(content)) :]
    for _ in range(draw.choice([0, 1, 8])):
        if content:
            content[draw.randrange(min(near, len(content)))] = draw.randrange(256)
    (folder / file).write_bytes(bytes(content))
    return f"{file} of {len(content)} bytes"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damage", [odd_field, odd_header, odd_bytes])
def test_a_damaged_checkpoint_is_refused_by_name_or_works(
    tiny_pair: TinyPair, tmp_path: Path, damage: Callable[..., str], seed: int
) -> None:
    draw = random.Random(seed)
    for i in range(6):
        folder = tmp_path / str(i)
        shutil.copytree(tiny_pair.llm, folder)
        case = damage(folder, draw)
        began = time.perf_counter()
        try:
            generator = HybridGenerator(tiny_pair.slm, folder, device="cpu", dtype="float32")
        except ValueError as error:
            named = str(error).startswith(("llm_model_id", "slm_model_id and llm_model_id"))
            assert named and len(str(error)) < 1000, f"{case}: {error}"
        else:
            text = generator.generate([7, 8], max_new_tokens=3, seed=1, print_stats=False).text
            assert isinstance(text, str), case
        assert time.perf_counter() - began < PATIENCE, case


def test_an_undamaged_checkpoint_works(tiny_pair: TinyPair) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype="float32")
    assert generator.generate([7, 8], max_new_tokens=3, print_stats=False).tokens
