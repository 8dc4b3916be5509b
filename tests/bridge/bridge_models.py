"""Random pairs of several families, and prompts with and without padding."""

import torch
from foreign_models import KINDS, foreign_model
from tiny_models import random_model
from torch import Tensor
from transformers import PreTrainedModel

VOCAB, PAD = 96, 0


def model(family: str, layers: int) -> PreTrainedModel:
    """Float32, of ``layers`` layers; two sizes of a family share their first layer's weights."""
    if family in KINDS:
        name = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
        return foreign_model(family, **{name: layers})
    return random_model(family, num_hidden_layers=layers)


def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A small and a large model, which agree now and then."""
    return model(family, 1), model(family, 2)


def prompts(*lengths: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left, and their mask."""
    generator = torch.Generator().manual_seed(len(lengths))
    width = max(lengths)
    ids = torch.randint(1, VOCAB, (len(lengths), width), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : width - length], mask[row, : width - length] = PAD, 0
    return ids, mask


PROMPTS = {1: prompts(9), 4: prompts(9, 5, 1, 7)}
