"""A strategy of one's own with an option of its own, as a command.

python examples/own_strategy.py "def area(radius):" --strategy opener --words 2
python examples/own_strategy.py --help
"""

import sys
from collections.abc import Generator
from typing import Any

import torch

from hybridgen import GenerationStrategy
from hybridgen.cli import main
from hybridgen.fields import Field, integer
from hybridgen.strategies.declarations import Declaration
from hybridgen.utils import sample_token

WORDS = Field("words", 1, integer(1, 8), "tokens of each line that the LLM writes", metavar="N")


class LineOpener(GenerationStrategy):
    """The LLM writes the first tokens of every line, the SLM the rest of it."""

    declaration = Declaration(
        "opener", "the LLM opens each line, the SLM writes the rest", options=(WORDS,)
    )

    def generate(
        self, slm: Any, llm: Any, tokenizer: Any, request: Any, device: Any, **rest: Any
    ) -> Generator[int, bool | None, dict[str, Any]]:
        ids, read, wrote = list(request.prompt_ids[0]), {slm: 0, llm: 0}, {slm: 0, llm: 0}
        while True:
            opening = tokenizer.decode(ids[-request.words :])
            model = llm if "\n" in opening else slm
            while read[model] < len(ids):  # catch up with what the other model wrote
                part = torch.tensor([ids[read[model] :][:16]], device=device)
                logits = model(part, torch.tensor([read[model]], device=device))
                read[model] += part.shape[1]
            ids.append(sample_token(logits[0, -1], *request.sampling, request.seed[0], len(ids)))
            wrote[model] += 1
            if (yield ids[-1]):  # a stop string, an eos or the limit has come
                return {"slm_tokens": wrote[slm], "llm_tokens": wrote[llm]}


if __name__ == "__main__":
    sys.exit(main(strategies={"opener": LineOpener()}))
