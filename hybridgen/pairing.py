"""Load two models that can write one text, or say why these two cannot."""

from typing import Any


def check_same_tokenizer(slm: Any, llm: Any) -> None:
    """Raise ValueError unless both tokenizers give every token the same id.

    Only the vocabularies of the tokenizers count: the models may pad theirs differently.
    """
    small, large = slm.get_vocab(), llm.get_vocab()
    if small == large:
        return
    differing = sorted(
        (token for token in small.keys() | large.keys() if small.get(token) != large.get(token)),
        key=lambda token: min(small.get(token, 1 << 62), large.get(token, 1 << 62)),
    )
    examples = ", ".join(
        f"{token!r} (SLM {small.get(token, 'none')}, LLM {large.get(token, 'none')})"
        for token in differing[:3]
    )
    raise ValueError(
        f"slm_model_id and llm_model_id need the same tokenizer: the SLM's has {len(small)} "
        f"tokens, the LLM's {len(large)}, and {len(differing)} have different ids, such as "
        f"{examples}"
    )
