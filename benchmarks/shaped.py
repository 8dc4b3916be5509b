"""Checkpoints of a published shape that cost what the model costs, and agree as often as asked.

There is nothing to download: the weights are made here. Each token t has one likeliest successor
s(t), and all models of a vocabulary share s, a random permutation of one cycle, so that a greedy
text repeats nothing before it has written the whole vocabulary. The embedding's rows E[t] are
random, of root mean square 1, and the head's are the same, H[s(t)] = E[t]: with a final norm of
weight a, the logit of s(t) is a d for a width of d, and that of an unrelated token is Gaussian
with variance a^2 d.

Eight tokens that share a part of their rows are a group, and after one of them the successors of
the others are likely too. A model that is to agree with the LLM on a share A of the tokens swaps
the successors of two tokens of a group for a share 1 - A of them: what it drafts there is the
LLM's second choice, as drafts of trained models often are. So the greedy agreement is exactly A
over the vocabulary; sampled acceptance follows from it, and is to be measured.

At temperature 1 the likeliest token has the probability `TOP`, the seven others of the group share
what is left but for `TAIL`, which is spread over the vocabulary V. With V exp(a^2 d / 2) for the
sum over V Gaussian logits, a is the lesser solution of a d - a^2 d / 2 = log(V TOP / TAIL), and the
others of the group lie log(7 TOP / (1 - TOP - TAIL)) below the first.

All products of all layers are random and dense. What they add to the residual stream is small
(`NOISE` of its size, all together), so the text still follows s. Embedding and head are two
tensors, also where the published model ties them: a token costs the same, the file is larger.
"""

import json
from collections.abc import Iterator
from math import log, sqrt
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from hybridgen.benchmarks.shapes import SHAPES, Config, tensors

SEED = 0
GROUP = 8
TOP, TAIL = 0.7, 0.02
NOISE = 0.1
SILU_RMS = 0.596  # of silu(x) y for independent standard normal x and y
SHARD = 2 * 10**9  # bytes of a file
CHUNK = 1024 * GROUP  # rows of the embedding made at a time, in float32
BYTES = 2  # of a bfloat16


def write(path: Path, shape: str, agreement: float, device: str = "cpu") -> None:
    """Write a checkpoint into the folder ``path``, made on ``device`` tensor by tensor.

    shape      a name in `SHAPES`
    agreement  share of tokens after which its greedy choice is the skeleton's; 1 for the LLM
    """
    config = SHAPES[shape]
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
    write_tokenizer(path, config)
    write_weights(path, config, agreement, device)


def successors(vocabulary: int, agreement: float) -> Tensor:
    """The likeliest next token of each, [V] int64 on CPU; of fewer agreeing ones the same differ.

    ValueError for an agreement outside of [0, 1].
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"an agreement is between 0 and 1, not {agreement}")
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(vocabulary, generator=generator)
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    pairs = torch.randperm(vocabulary // 2, generator=generator)
    first = 2 * pairs[: round((1 - agreement) * len(pairs))]
    following[first], following[first + 1] = following[first + 1], following[first]
    return following


def scale(vocabulary: int, width: int) -> float:
    """Weight of the final norm. ValueError for a width too small to tell tokens apart."""
    lift = log(vocabulary * TOP / TAIL)
    if width <= 2 * lift:
        raise ValueError(f"a width of {width} is too small for {vocabulary} tokens")
    return 1 - sqrt(1 - 2 * lift / width)


def write_weights(path: Path, config: Config, agreement: float, device: str) -> None:
    """Safetensors in bfloat16, one file or several with an index."""
    shards = _shards(config)
    made = _made(config, agreement, device)
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        content = {name: next(made) for name in names}
        save_file(content, path / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = {"total_size": sum(_bytes(shape) for _, shape in tensors(config))}
        _write_json(
            path / "model.safetensors.index.json", {"metadata": total, "weight_map": places}
        )


def _shards(config: Config) -> list[list[str]]:
    """Names of the tensors of each file, in their order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in tensors(config):
        if shards[-1] and filled + _bytes(shape) > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _bytes(shape)
    return shards


def _bytes(shape: tuple[int, ...]) -> int:
    return BYTES * torch.Size(shape).numel()


def _made(config: Config, agreement: float, device: str) -> Iterator[Tensor]:
    """The tensors, in the order of `tensors`."""
    generator = torch.Generator(device).manual_seed(SEED)
    vocabulary, width = config["vocab_size"], config["hidden_size"]
    embedding = _embedding(vocabulary, width, generator)
    yield embedding
    # Row s(t) of the head is row t of the embedding.
    yield embedding[successors(vocabulary, agreement).argsort().to(device)]
    del embedding
    for name, shape in list(tensors(config))[2:]:
        weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
        if name == "model.norm.weight":
            yield weight.fill_(scale(vocabulary, width))
        elif len(shape) == 1:
            yield weight.fill_(1)
        else:
            yield weight.normal_(0, _deviation(name, shape, config), generator=generator)


def _deviation(name: str, shape: tuple[int, ...], config: Config) -> float:
    """Of a product's weights: inputs of size 1 give outputs of size 1, or of a layer's noise."""
    noise = NOISE / sqrt(2 * config["num_hidden_layers"])
    unit = 1 / sqrt(shape[1])
    if "down_proj" in name:
        return unit * noise / SILU_RMS
    return unit * noise if "o_proj" in name else unit


def _embedding(vocabulary: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows of root mean square 1, alike within a group, [V, d] bfloat16."""
    gap = log((GROUP - 1) * TOP / (1 - TOP - TAIL))
    own = gap / (scale(vocabulary, width) * width)
    rows = torch.empty(vocabulary, width, dtype=torch.bfloat16, device=generator.device)
    for block in rows.split(CHUNK):
        groups, single = (
            torch.empty(count, width, device=generator.device).normal_(generator=generator)
            for count in (len(block) // GROUP, len(block))
        )
        mixed = groups.repeat_interleave(GROUP, 0) * sqrt(1 - own) + single * sqrt(own)
        block.copy_(mixed * mixed.square().mean(1, keepdim=True).rsqrt())
    return rows


def write_tokenizer(path: Path, config: Config) -> None:
    """Token i is the word "wi"; other words are "w0"."""
    words = {f"w{i}": i for i in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = f"w{config['eos_token_id']}"
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "unk_token": "w0",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    _write_json(path / "tokenizer_config.json", settings)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
