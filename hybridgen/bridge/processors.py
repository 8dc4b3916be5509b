"""transformers' logits processors as an `Adjustment` and a `Sampling`.

Of the list that `generate` has prepared, the temperature, top-k, top-p and min-p at its end become
the fused sampler's. What comes first and depends on sets of ids and on counts becomes a device op,
as far as its order allows. Everything between is called as it is, for each row and each position,
drafts included. So a processor sees what transformers would show it: the padded prompt and all
tokens after it.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

from torch import Tensor
from transformers.generation import logits_process as hf

from hybridgen.bridge.guidance import Guidance
from hybridgen.checks import quoted
from hybridgen.engine.adjustment import Adjustment, RowFunction
from hybridgen.engine.sampling import Sampling
from hybridgen.recommendations import SMALLEST_TOP_P

NEVER = float("-inf")
GREEDY = Sampling(temperature=0.0)


class Prompts(NamedTuple):
    """A padded batch as rows.

    ids       each prompt's own tokens
    fronts    what stands in front of each
    width     tokens of a padded prompt
    """

    ids: tuple[tuple[int, ...], ...]
    fronts: tuple[tuple[int, ...], ...]
    width: int


def plan(
    processors: Sequence[Any], prompts: Prompts, do_sample: bool
) -> tuple[Adjustment, Sampling]:
    """What ``processors`` do to the logits of these prompts, and how tokens are then drawn.

    Raises ValueError for a processor that cannot be asked about drafts.
    """
    kept, sampling = split_sampling(processors)
    on_device = Device(prompts)
    while kept and on_device.take(kept[0]):
        kept = kept[1:]
    functions = tuple(row_function(processor, prompts) for processor in kept)
    return on_device.adjustment(functions), sampling if do_sample else GREEDY


def split_sampling(processors: Sequence[Any]) -> tuple[list[Any], Sampling]:
    """The processors without the warpers at their end that a `Sampling` says as well."""
    kept, found = list(processors), {}
    while kept and type(kept[-1]) is hf.LogitNormalization:
        kept.pop()  # a draw does not notice
    order = list(Sampling._fields)
    while kept and order:
        value = warped(kept[-1])
        if value is None or value[0] not in order:
            break
        found[value[0]] = value[1]
        del order[order.index(value[0]) :]
        kept.pop()
    return kept, Sampling(**found)


def warped(warper: Any) -> tuple[str, Any] | None:
    """The parameter of `Sampling` that a warper is, and its value."""
    if type(warper) is hf.TemperatureLogitsWarper:
        return "temperature", float(warper.temperature)
    plain = getattr(warper, "filter_value", None) == NEVER
    if not plain or getattr(warper, "min_tokens_to_keep", 1) != 1:
        return None
    if type(warper) is hf.TopKLogitsWarper:
        return "top_k", int(warper.top_k)
    if type(warper) is hf.TopPLogitsWarper:
        return "top_p", float(warper.top_p) or SMALLEST_TOP_P
    if type(warper) is hf.MinPLogitsWarper:
        return "min_p", float(warper.min_p)
    return None


class Device:
    """The processors so far, as one op: biases, then a repetition penalty, then what is never."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self.bias: dict[int, float] = {}
        self.never: set[int] = set()
        self.penalty, self.counted = 1.0, [-prompts.width] * len(prompts.ids)
        self.ngram = self.min_new_tokens = 0
        self.ends: tuple[int, ...] = ()
        # A padding of one token, over and over, is a number; any other text would be a table.
        self.sees_fronts = all(len(set(front)) < 2 for front in prompts.fronts)
        self.by_type: dict[type, Callable[[Any], bool]] = {
            hf.SequenceBiasLogitsProcessor: self._bias,
            hf.RepetitionPenaltyLogitsProcessor: self._repetition,
            hf.NoRepeatNGramLogitsProcessor: self._ngrams,
            hf.NoBadWordsLogitsProcessor: self._bad_words,
            hf.SuppressTokensLogitsProcessor: self._suppress,
            hf.MinLengthLogitsProcessor: self._min_length,
            hf.MinNewTokensLengthLogitsProcessor: self._min_new,
        }

    def take(self, processor: Any) -> bool:
        """Add a processor, of exactly one of these types; False where the op cannot say it."""
        take = self.by_type.get(type(processor))
        return take is not None and take(processor)

    def adjustment(self, functions: tuple[RowFunction, ...]) -> Adjustment:
        """All that was taken, and ``functions`` after it."""
        return Adjustment(
            bias=self.bias | dict.fromkeys(self.never, NEVER),
            repetition_penalty=self.penalty,
            no_repeat_ngram_size=self.ngram,
            min_new_tokens=self.min_new_tokens,
            ends=self.ends,
            functions=functions,
            fronts=self.prompts.fronts,
            counted=tuple(self.counted),
        )

    def _bias(self, processor: Any) -> bool:
        bias = processor.sequence_bias
        # Two sums would be rounded otherwise, and a penalty looks at the sign of the sum.
        if self.bias or self.penalty != 1 or any(len(ids) > 1 for ids in bias):
            return False
        self.bias = {ids[0]: float(value) for ids, value in bias.items()}
        return True

    def _repetition(self, processor: Any) -> bool:
        if self.penalty != 1 or not self.sees_fronts:
            return False
        rows, ignored = range(len(self.prompts.ids)), processor.prompt_ignore_length
        if isinstance(ignored, Tensor) and len(ignored) != len(rows):
            return False
        ignored = ignored.tolist() if isinstance(ignored, Tensor) else [ignored or 0] * len(rows)
        self.penalty = float(processor.penalty)
        self.counted = [ignored[row] - len(self.prompts.fronts[row]) for row in rows]
        return True

    def _ngrams(self, processor: Any) -> bool:
        if self.ngram or not self.sees_fronts:
            return False
        self.ngram = int(processor.ngram_size)
        return True

    def _bad_words(self, processor: Any) -> bool:
        if any(len(ids) > 1 for ids in processor.sequence_bias):
            return False
        self.never |= {ids[0] for ids in processor.sequence_bias}
        return True

    def _suppress(self, processor: Any) -> bool:
        self.never |= {int(i) for i in processor.suppress_tokens.tolist()}
        return True

    def _min_length(self, processor: Any) -> bool:
        return self._at_least(processor.min_length - self.prompts.width, processor.eos_token_id)

    def _min_new(self, processor: Any) -> bool:
        length = processor.min_new_tokens + processor.prompt_length_to_skip
        return self._at_least(length - self.prompts.width, processor.eos_token_id)

    def _at_least(self, new_tokens: int, ends: Tensor) -> bool:
        ids = tuple(int(i) for i in ends.flatten().tolist())
        if self.ends not in ((), ids):
            return False
        self.min_new_tokens, self.ends = max(self.min_new_tokens, new_tokens), ids
        return True


def row_function(processor: Any, prompts: Prompts) -> RowFunction:
    """``processor`` asked about one row at a time; what it knows of the batch is cut to the row."""
    if isinstance(processor, hf.UnbatchedClassifierFreeGuidanceLogitsProcessor):
        return Guidance(processor, prompts.width, len(prompts.ids))
    if isinstance(processor, hf.SynthIDTextWatermarkLogitsProcessor):
        raise ValueError(
            "watermarking_config must not be SynthID's: it counts the tokens that it is asked "
            f"about, and drafts are asked about too; got {quoted(processor)}"
        )
    if isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        return prefix_function(processor)
    rows = len(prompts.ids)
    alone = [of_row(processor, row, rows) for row in range(rows)]
    return lambda text, ids, scores: alone[text](ids, scores)


def prefix_function(processor: Any) -> RowFunction:
    """The prompt's number is what it is in the batch, not among the rows that are asked about."""
    allowed, rows_a_prompt = processor._prefix_allowed_tokens_fn, processor._num_beams

    def function(text: int, ids: Tensor, scores: Tensor) -> Any:
        alone = hf.PrefixConstrainedLogitsProcessor(
            lambda _, prefix: allowed(text // rows_a_prompt, prefix), 1
        )
        return alone(ids, scores)

    return function


def of_row(processor: Any, row: int, rows: int) -> Any:
    """A copy of a processor that holds a batch's tensors, with those of the row.

    Where each prompt has several rows, the encoder's processors know each prompt once.
    """
    alone = copy(processor)
    if isinstance(processor, hf.EncoderRepetitionPenaltyLogitsProcessor):
        prompt = row * len(processor.encoder_input_ids) // rows
        alone.encoder_input_ids = processor.encoder_input_ids[prompt : prompt + 1]
    elif isinstance(processor, hf.EncoderNoRepeatNGramLogitsProcessor):
        prompt = row * processor.batch_size // rows
        alone.batch_size = 1
        alone.generated_ngrams = processor.generated_ngrams[prompt : prompt + 1]
    elif isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        alone.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
    else:
        return processor
    return alone
