"""Prompts into the cache: several share a block of tokens, and only keys and values are computed.

The products run over a whole block, attention runs prompt by prompt. What is kept of a prompt has
the same bits whatever it was read beside:

- a block has one of a few numbers of rows, the last ones padding, in which a row's bits do not
  depend on its place (`block_sizes.py` tries it out);
- a prompt is cut into pieces at fixed places of its own, and its length alone, with where it is
  read from, decides in blocks of which bits its tokens are read.

On a GPU short prompts are read by graphs (`prompt_graphs.py`), in blocks of their own.

A later piece sees what the earlier ones wrote to the cache. Of the last layer only keys and values
are needed. Memory is that of one block, and of a mask of one piece over the keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.engine.prompt_graphs import SLOTS, Capture, PromptGraph, slot, space_for
from hybridgen.engine.rope import rotations
from hybridgen.engine.weights import Linear, Weights
from hybridgen.kernels.block_sizes import size_classes
from hybridgen.kernels.cache_write import cache_write
from hybridgen.kernels.layers import embed, normalize
from hybridgen.kernels.linear import gated, product
from hybridgen.kernels.processor import cpu_has_amx
from hybridgen.kernels.prompt_attention import Masks, prompt_attention

Classes = Sequence[tuple[int, ...]]
"""Sizes that a block may have, those of equal bits together; by their largest, ascending."""


class Sizes(NamedTuple):
    """Rows of a block, ascending, and the most tokens of a run and of a piece.

    From a run's rows on, the time of a product grows with them.
    """

    blocks: tuple[int, ...]
    run: int
    piece: int


CPU = Sizes((16, 32, 64, 128, 256, 512), 256, 128)
GPU = Sizes((256, 512, 1024, 2048), 2048, 512)
"""Up to about 250 tokens a product costs one read of its weight, so smaller blocks gain nothing. A
block's launches cost a host 25 ms, whatever its size: a prompt of 2,000 tokens for Qwen3-8B took
an H200 92 ms in blocks of 512, and takes 64 ms in one."""


class Piece(NamedTuple):
    """Tokens ``first`` to ``end - 1`` of prompt ``prompt``, for row ``row``."""

    prompt: int
    row: int
    first: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.first


class Block(NamedTuple):
    """Pieces that are read together, in ``size`` rows."""

    size: int
    pieces: list[Piece]


def plan(
    lengths: Sequence[int],
    rows: Sequence[int],
    starts: Sequence[int],
    classes: Classes,
    run: int,
    piece: int,
) -> list[Block]:
    """The blocks in which prompts of ``lengths`` tokens are read into ``rows``, in that order.

    Of each the tokens from ``starts`` on: those before have been read.

    Runs of ``run`` tokens, or of as many as the largest block has, and then the rest, are each read
    in the class of the smallest block that holds them: that depends on nothing but the prompt.
    Without a class, every piece is alone.
    """
    run = min(run, classes[-1][-1]) if classes else piece
    streams: dict[tuple[int, ...], list[Piece]] = {sizes: [] for sizes in reversed(classes)}
    alone = []
    for prompt, (row, start, length) in enumerate(zip(rows, starts, lengths, strict=True)):
        for first in range(start, length, run):
            end = min(first + run, length)
            places = range(first, end, piece)
            pieces = [Piece(prompt, row, at, min(at + piece, end)) for at in places]
            if classes:
                streams[_home(end - first, classes)] += pieces
            else:
                alone += [Block(p.length, [p]) for p in pieces]
    filled = [_fill(pieces, sizes, run) for sizes, pieces in streams.items()]
    return alone + [block for blocks in filled for block in blocks]


def _home(count: int, classes: Classes) -> tuple[int, ...]:
    """The class of the smallest block with ``count`` rows or more."""
    _, sizes = min((size, sizes) for sizes in classes for size in sizes if size >= count)
    return sizes


def _fill(pieces: list[Piece], sizes: tuple[int, ...], run: int) -> list[Block]:
    """Blocks with the pieces in order, each as small as its pieces allow."""
    blocks: list[Block] = []
    left, at = sum(piece.length for piece in pieces), 0
    while at < len(pieces):
        end, count, most = at, 0, _size(left, sizes, run)
        while end < len(pieces) and count + pieces[end].length <= most:
            count += pieces[end].length
            end += 1
        blocks.append(Block(min(s for s in sizes if s >= count), pieces[at:end]))
        left, at = left - count, end
    return blocks


def _size(count: int, sizes: tuple[int, ...], run: int) -> int:
    """How large the next block is for ``count`` tokens, of which it may leave some to others.

    With more rows than a run has, at most a quarter may be padding.
    """
    enough = next((size for size in sizes if size >= count), sizes[-1])
    smaller = [size for size in sizes if run <= size < enough]
    return smaller[-1] if smaller and 4 * count < 3 * enough else enough


def _attention_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a CPU computes a prompt's attention in, for a model of ``dtype``.

    torch's attention is twice as fast in bfloat16 as in float32 where there is AMX, but its kernel
    needs the vector instructions of AVX-512 beside it; elsewhere it is as fast in float32, or
    faster, and in float16 it is slower.
    """
    fast = cpu_has_amx() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return dtype if dtype == torch.bfloat16 and fast else torch.float32


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of many rows; on a GPU torch's own, whose launch costs the host less than ours."""
    return normalize(x, weight, eps) if x.is_cpu else F.rms_norm(x, weight.shape, weight, eps)


class PromptReader:
    """Reads prompts with ``weights``, which give their device and dtype; eps is that of norms.

    capture  None: no prompt is read by graphs. A graph is captured when it is first needed.
    dtype    of the products, their results and attention, where it is not the weights'; the
             residual stream and its norms stay
    """

    def __init__(
        self,
        weights: Weights,
        eps: float,
        capture: Capture | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.weights, self.eps, self.capture = weights, eps, capture
        self._multiplied = dtype or weights.dtype
        self._graphs: dict[int, PromptGraph] = {}
        self._space: Tensor | None = None
        cpu = weights.embedding.is_cpu
        self.sizes = CPU if cpu else GPU
        self.dtype = _attention_dtype(self._multiplied) if cpu else weights.dtype
        self._classes: Classes | None = None

    def find_classes(self) -> Classes:
        """Which blocks keep a row's bits, tried out in the first call."""
        if self._classes is None:
            products: Sequence[Linear] = self.weights.layers[0].products
            if self._multiplied != self.weights.dtype:
                products = [linear._replace(bias=None) for linear in products]
            self._classes = size_classes(products, self.sizes.blocks, self._multiplied)
        return self._classes

    def read(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int],
        starts: Sequence[int],
        cache: Tensor,
        rope: Tensor,
    ) -> None:
        """Write keys and values of the prompts ``tokens[i, starts[i]:lengths[i]]`` to ``rows[i]``.

        tokens  int64 [N, T]
        cache   [layers, 2, kv_heads, rows, positions, D]
        rope    float32 [2, positions, 1, D], see `rope.rope_table`
        """
        classes = self.find_classes()
        for length, mine in self._short(lengths, starts).items():
            prompts = [tokens[i, : lengths[i]] for i in mine]
            self._graph(length, cache, rope).read(prompts, [rows[i] for i in mine], cache)
            starts = [n if i in mine else starts[i] for i, n in enumerate(lengths)]
        longest = max((n for n, start in zip(lengths, starts, strict=True) if n > start), default=0)
        masks, caches = self._masks(longest, self.sizes.piece, cache), cache.unbind()
        for block in plan(lengths, rows, starts, classes, *self.sizes[1:]):
            self._read_block(block, tokens, caches, rope, masks)

    def _masks(self, longest: int, piece: int, cache: Tensor) -> Masks:
        _, _, heads, _, _, dim = cache.shape
        group = self.weights.layers[0].output.weight.shape[1] // (heads * dim)
        return Masks(longest, piece, group, self.dtype, cache.device)

    def _short(self, lengths: Sequence[int], starts: Sequence[int]) -> dict[int, list[int]]:
        """Prompts that graphs are to read, by the tokens of their slots."""
        homes = [slot(n, start) for n, start in zip(lengths, starts, strict=True)]
        captured = [length for length in self._captured_lengths() if length in homes]
        return {length: [i for i, n in enumerate(homes) if n == length] for length in captured}

    def prepare(self, cache: Tensor, rope: Tensor) -> None:
        """Capture, now, what prompts may need; ``cache`` and ``rope`` as in `read`."""
        for length in self._captured_lengths():
            self._graph(length, cache, rope)

    def _captured_lengths(self) -> list[int]:
        """Of slots whose prompts keep their bits wherever in a block they stand."""
        if self.capture is None:
            return []
        rows = {size for sizes in self.find_classes() for size in sizes}
        return [length for length, slots in SLOTS.items() if slots * length in rows]

    def _graph(self, length: int, cache: Tensor, rope: Tensor) -> PromptGraph:
        if length not in self._graphs:
            assert self.capture is not None
            masks = self._masks(length, length, cache)
            pieces = [Piece(i, i, 0, length) for i in range(SLOTS[length])]
            block = Block(len(pieces) * length, pieces)
            reader = PromptReader(self.weights, self.eps)  # not this one, which has the graph

            def read(tokens: Tensor, kept: Tensor) -> None:
                reader._read_block(block, tokens, kept.unbind(), rope, masks)

            if self._space is None:
                self._space = space_for(cache)
            self._graphs[length] = PromptGraph(length, cache, self._space, read, self.capture)
        return self._graphs[length]

    def _read_block(
        self, block: Block, tokens: Tensor, caches: Sequence[Tensor], rope: Tensor, masks: Masks
    ) -> None:
        x, cos, sin = self._embed(block, tokens, rope)
        layers, eps = self.weights.layers, self.eps
        seen = None
        turns = rotations([layer.rotates for layer in layers], cos, sin)
        for layer, cache, (cos, sin) in zip(layers, caches, turns, strict=True):
            qkv = self._product(normed(x, layer.input_norm, eps), layer.qkv)
            if seen is None:
                width = qkv.shape[1] - 2 * cache.shape[1] * cache.shape[4]
                seen = qkv.new_zeros(len(qkv), width)  # padding stays zero
            at = 0
            for piece in block.pieces:
                part = slice(at, at + piece.length)
                at += piece.length
                row = cache[:, :, piece.row, : piece.end]
                new = row[:, :, piece.first :]
                q = cache_write(qkv[part], new, cos[part], sin[part], layer.qk_norm, eps)
                if layer is not layers[-1]:
                    output = prompt_attention(q, row, layer.window, self.dtype, masks)
                    seen[part].view(output.shape).copy_(output)
            if layer is layers[-1]:
                return
            x.add_(self._product(seen, layer.output))
            both = self._product(normed(x, layer.mlp_norm, eps), layer.gate_up)
            x.add_(self._product(gated(both), layer.down))

    def _product(self, x: Tensor, linear: Linear) -> Tensor:
        """Of x [R, H] in any dtype; the result has that of the products."""
        if self._multiplied == self.weights.dtype:
            return product(x, *linear)
        y = product(x.to(self._multiplied), linear.weight, None, linear.scale)
        return y if linear.bias is None else y.add_(linear.bias)

    def _embed(self, block: Block, tokens: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream [rows, H] before the first layer, and the tokens' rotary rows."""
        padding, ids, at = block.size, list[Tensor](), list[Tensor]()
        for prompt, _, first, end in block.pieces:
            ids.append(tokens[prompt, first:end])
            at.append(torch.arange(first, end, dtype=torch.int64, device=tokens.device))
            padding -= end - first
        if padding:
            ids.append(tokens.new_zeros(padding))
            at.append(ids[-1])
        token, position = torch.cat(ids), torch.cat(at)
        if not tokens.is_cpu:
            x, cos, sin = embed(token.unsqueeze(1), position, self.weights.embedding, rope)
            return self.weights.scaled(x), cos, sin
        cos, sin = rope.index_select(1, position).unbind()
        return self.weights.rows(token), cos, sin
