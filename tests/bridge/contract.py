"""The contract of transformers' `generate`, argument by argument: what is supported, and how.

The tests try each case on random models; the table of docs/transformers.md is made of the same
lists: `python tests/bridge/contract.py` prints it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, WatermarkingConfig
from transformers.generation import StoppingCriteria

EOS = 0


class PenaliseLast(LogitsProcessor):
    """A processor that transformers does not know: less of the last token, more of the next."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores.scatter_add_(1, ids[:, -1:], torch.full_like(ids[:, -1:], -2, dtype=scores.dtype))
        following = (ids[:, -1:] + 1) % scores.shape[1]
        scores.scatter_add_(1, following, torch.full_like(following, 3, dtype=scores.dtype))
        return scores


class EndsOnMultiple(StoppingCriteria):
    """Ends a row at an id that is a multiple of seven, of any length above the prompt's."""

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (ids[:, -1] % 7 == 3) & (ids[:, -1] > 10)


def allowed(batch_id: int, ids: Tensor) -> list[int]:
    """Another set for each prompt and each length."""
    first = (batch_id * 5 + len(ids)) % 20
    return [*range(first, first + 40)]


class Case(NamedTuple):
    """Arguments of `generate` that try one feature.

    where      "device": an op of the captured round; "host": called for each token; "sampler": the
               fused kernel; "loop": by what runs the rounds; "transformers": prepared there
    sampled    it needs ``do_sample=True``
    prompt     what the arguments take that depend on the prompt
    """

    feature: str
    arguments: dict[str, Any]
    where: str
    sampled: bool = False
    prompt: Callable[[Tensor], dict[str, Any]] = lambda ids: {}


def negative(ids: Tensor) -> dict[str, Any]:
    return {"negative_prompt_ids": ids[:, -3:].flip(1) % 90 + 1}


CASES = [
    Case("max_new_tokens", {"max_new_tokens": 7}, "loop"),
    Case("max_length", {"max_length": 30, "max_new_tokens": None}, "loop"),
    Case("repetition_penalty", {"repetition_penalty": 1.4}, "device"),
    Case("repetition_penalty", {"repetition_penalty": 0.7}, "device"),
    Case("no_repeat_ngram_size", {"no_repeat_ngram_size": 1}, "device"),
    Case("no_repeat_ngram_size", {"no_repeat_ngram_size": 2}, "device"),
    Case("min_new_tokens", {"min_new_tokens": 15}, "device"),
    Case("min_length", {"min_length": 20}, "device"),
    Case("suppress_tokens", {"suppress_tokens": [*range(1, 96, 3)]}, "device"),
    Case("bad_words_ids", {"bad_words_ids": [[i] for i in range(2, 96, 3)]}, "device"),
    Case(
        "bad_words_ids of several tokens",
        {"bad_words_ids": [[i, j] for i in range(1, 96) for j in range(96) if (i + j) % 3 == 0]},
        "host",
    ),
    Case("sequence_bias", {"sequence_bias": [[[i], 4.0] for i in range(1, 96, 4)]}, "device"),
    Case(
        "sequence_bias of several tokens",
        {"sequence_bias": [[[i, (i * 7) % 96], 4.0] for i in range(1, 96)]},
        "host",
    ),
    Case("begin_suppress_tokens", {"begin_suppress_tokens": [*range(1, 96, 2)]}, "host"),
    Case("forced_eos_token_id", {"forced_eos_token_id": 5, "eos_token_id": [0, 5]}, "host"),
    Case(
        "exponential_decay_length_penalty",
        {"exponential_decay_length_penalty": (3, 1.3)},
        "host",
    ),
    Case("encoder_repetition_penalty", {"encoder_repetition_penalty": 1.5}, "host"),
    Case("encoder_no_repeat_ngram_size", {"encoder_no_repeat_ngram_size": 2}, "host"),
    Case("remove_invalid_values", {"remove_invalid_values": True}, "host"),
    Case("renormalize_logits", {"renormalize_logits": True}, "sampler"),
    Case("prefix_allowed_tokens_fn", {"prefix_allowed_tokens_fn": allowed}, "host"),
    Case("guidance_scale", {"guidance_scale": 1.6}, "host"),
    Case("negative_prompt_ids", {"guidance_scale": 1.6}, "host", prompt=negative),
    Case(
        "watermarking_config",
        {"watermarking_config": WatermarkingConfig(bias=3.0, seeding_scheme="selfhash")},
        "host",
    ),
    Case("logits_processor", {"logits_processor": [PenaliseLast()]}, "host"),
    Case("stopping_criteria", {"stopping_criteria": [EndsOnMultiple()]}, "loop"),
    Case("max_time", {"max_time": 1e-9}, "loop"),
    Case("eos_token_id", {"eos_token_id": [*range(0, 96, 8)]}, "loop"),
    Case("temperature", {"temperature": 0.7}, "sampler", sampled=True),
    Case("top_k", {"top_k": 3}, "sampler", sampled=True),
    Case("top_p", {"top_p": 0.8}, "sampler", sampled=True),
    Case("min_p", {"min_p": 0.15}, "sampler", sampled=True),
    Case("typical_p", {"typical_p": 0.7}, "host", sampled=True),
    Case("epsilon_cutoff", {"epsilon_cutoff": 0.1}, "host", sampled=True),
    Case("eta_cutoff", {"eta_cutoff": 0.2}, "host", sampled=True),
    Case("top_h", {"top_h": 0.5}, "host", sampled=True),
]
# Arguments with a test of their own, by the test.
BESIDES = {
    "stop_strings": "test_ends.py",
    "streamer": "test_ends.py",
    "output_scores": "test_ends.py",
    "output_logits": "test_ends.py",
    "return_dict_in_generate": "test_ends.py",
    "num_return_sequences": "test_bridge.py",
    "attention_mask": "test_bridge.py",
    "generation_config": "test_bridge.py",
    "past_key_values": "test_bridge_turns.py",
}
# Arguments that are refused by name, and values that are.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 2}, "num_beams"),
    ({"use_cache": False}, "use_cache"),
    ({"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True}, "penalty_alpha|[Cc]ontrastive"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    ({"output_attentions": True}, "output_attentions"),
    ({"output_hidden_states": True}, "output_hidden_states"),
    ({"token_healing": True}, "token.healing"),
    ({"assistant_model": torch.nn.Linear(1, 1)}, "^assistant_model"),
    ({"custom_generate": print}, "^custom_generate"),
    ({"inputs_embeds": torch.zeros(4, 9, 48), "input_ids": None}, "inputs_embeds"),
]
HOW = {
    "sampler": "in the fused sampling kernel",
    "device": "an op on the device, in the captured round",
    "host": "on the host, for each row and token, drafts too: by its arguments alone",
    "loop": "by what runs the rounds; criteria are asked row by row, without scores",
}


def markdown() -> str:
    """The table of docs/transformers.md."""
    features = {where: [c.feature for c in CASES if c.where == where] for where in HOW}
    features["loop"] += BESIDES
    refused = [next(iter(asked)) for asked, _ in REFUSED]
    rows = [(features[where], how) for where, how in HOW.items()]
    rows.append((refused, "refused by name, with every value that asks for it"))
    lines = [f"| {', '.join(map(code, dict.fromkeys(names)))} | {how} |" for names, how in rows]
    return "\n".join(["| argument of a call | how it is done |", "|---|---|", *lines])


def code(feature: str) -> str:
    """Names as code, words beside them as words."""
    name, _, more = feature.partition(" of ")
    return ", ".join(f"`{part}`" for part in name.split(", ")) + (f" of {more}" if more else "")


MIXED = [
    Case(
        "several at once",
        {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[7], [9]],
            "min_new_tokens": 4,
            "suppress_tokens": [11, 12],
        },
        "device",
    ),
    Case(
        "several, some on the host",
        {
            "sequence_bias": [[[8], 2.0]],
            "repetition_penalty": 1.2,
            "encoder_repetition_penalty": 1.2,
            "logits_processor": [PenaliseLast()],
            "no_repeat_ngram_size": 3,
        },
        "host",
    ),
]

if __name__ == "__main__":
    print(markdown())
