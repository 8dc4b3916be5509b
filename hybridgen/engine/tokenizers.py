"""Read tokenizers from a folder or the hub, and choose the one that a pair of models has."""

from os import PathLike
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hybridgen.checks import shown
from hybridgen.engine import checkpoint
from hybridgen.engine.loading import NAMES, named


def load_tokenizer(
    model: str | PathLike[str], argument: str, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer. ValueError, naming ``argument``, when there is none to read."""
    with named(argument, model, "the tokenizer of "):
        checkpoint.find(model)
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # made of nothing, where no file is
            raise ValueError("it has no tokenizer with a vocabulary")
        tokenizer.decode(tokenizer("a")["input_ids"])  # what is damaged shows here
        checkpoint.end_ids(tokenizer.eos_token_id, "the tokenizer's eos_token_id")
    return tokenizer


def choose_tokenizer(slm: Any, llm: Any, tokenizer: Any, trust_remote_code: bool) -> Any:
    """The tokenizer of the pair, or of the LLM alone, after checking that it is that of each model.

    One that is given is compared with each model's own, where that can be found.
    """
    if tokenizer is not None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"tokenizer must be a transformers tokenizer, got {shown(tokenizer)}")
        checkpoint.end_ids(tokenizer.eos_token_id, "tokenizer: eos_token_id")
    own = {}
    for source, name in zip((slm, llm), NAMES, strict=True):
        try:
            if source is not None:
                own[name] = load_tokenizer(place_of(source, name), name, trust_remote_code)
        except ValueError:
            if tokenizer is None:
                raise
    if len(own) == len(NAMES):
        check_same_tokenizer(*own.values())
    if tokenizer is None:
        return own["llm_model_id"]
    for name, vocabulary in own.items():
        check_covers(tokenizer, vocabulary, name)
    return tokenizer


def place_of(source: Any, name: str) -> str:
    """Where a model's tokenizer is: a loaded model remembers where it is from."""
    if not isinstance(source, PreTrainedModel):
        return str(source)
    if not source.name_or_path:
        raise ValueError(f"{name} is a model that was not loaded from anywhere: pass tokenizer=")
    return str(source.name_or_path)


def check_same_tokenizer(slm: Any, llm: Any) -> None:
    """Raise ValueError unless both tokenizers give every token the same id.

    Only the vocabularies of the tokenizers count: the models may pad theirs differently.
    """
    small, large = slm.get_vocab(), llm.get_vocab()
    differing = [
        token for token in small.keys() | large.keys() if small.get(token) != large.get(token)
    ]
    if differing:
        raise ValueError(
            f"slm_model_id and llm_model_id need the same tokenizer: the SLM's has {len(small)} "
            f"tokens, the LLM's {len(large)}, and {len(differing)} have different ids, such as "
            f"{_examples(differing, SLM=small, LLM=large)}"
        )


def check_covers(tokenizer: Any, own: Any, name: str) -> None:
    """Raise ValueError unless ``tokenizer`` gives every token of a model's ``own`` the same id.

    It may have further ones: users add a padding token, or those of a chat.
    """
    given, vocabulary = tokenizer.get_vocab(), own.get_vocab()
    differing = [token for token in vocabulary if given.get(token) != vocabulary[token]]
    if differing:
        raise ValueError(
            f"tokenizer is not that of {name}: it has {len(given)} tokens, the model's own "
            f"{len(vocabulary)}, and {len(differing)} of these have another id or none, such as "
            f"{_examples(differing, given=given, own=vocabulary)}"
        )


def _examples(differing: list[str], **vocabularies: dict[str, int]) -> str:
    """The first few tokens by id, and what each vocabulary says of them."""

    def first(token: str) -> int:
        return min(vocabulary.get(token, 1 << 62) for vocabulary in vocabularies.values())

    return ", ".join(
        f"{shown(token).removesuffix(' (str)')} ("
        + ", ".join(f"{name} {ids.get(token, 'none')}" for name, ids in vocabularies.items())
        + ")"
        for token in sorted(differing, key=first)[:3]
    )
