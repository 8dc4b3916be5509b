# ruff: noqa: F821 (reveal_type is the type checkers')
# A user's file, which is read by mypy and never run: each comment says what mypy does.
from typing import Any

import torch

from hybridgen import GenerationResult, HybridGenerator, ProfileResult, accelerate
from hybridgen.utils import compute_logu

generator = HybridGenerator(max_batch_size=2, dtype="float32")
HybridGenerator(pair="qwen3-8b", dtype=torch.float16)
HybridGenerator("org/small", "org/large", device="cuda:1", max_seq_len=512)
HybridGenerator(pair="qwen3-9b")  # error: arg-type
HybridGenerator(dtype="float64")  # error: arg-type
HybridGenerator(max_batch_size="4")  # error: arg-type
HybridGenerator(max_batch=4)  # error: call-arg

chat = [{"role": "user", "content": "Why?"}]
tensor = torch.tensor([[1, 2], [3, 4]])
reveal_type(generator.generate("a"))  # reveal: GenerationResult[str, list[int]]
reveal_type(generator.generate([1, 2]))  # reveal: GenerationResult[str, list[int]]
reveal_type(generator.generate(chat))  # reveal: GenerationResult[str, list[int]]
reveal_type(generator.generate(prompt="a").text)  # reveal: str
reveal_type(generator.generate("a").tokens)  # reveal: list[int]
reveal_type(generator.generate("a").stats)  # reveal: dict[str, Any]
reveal_type(generator.generate(["a", "b"]))  # reveal: GenerationResult[list[str], list[list[int]]]
reveal_type(generator.generate(("a", "b")).text)  # reveal: list[str]
reveal_type(generator.generate([[1, 2], [3]]).text)  # reveal: list[str]
reveal_type(generator.generate([chat, chat]).full_text)  # reveal: list[str]
reveal_type(generator.generate(["a", [1, 2], chat]).tokens)  # reveal: list[list[int]]
reveal_type(generator.generate([tensor[0], tensor[1]]).text)  # reveal: list[str]
reveal_type(generator.generate(tensor))  # reveal: GenerationResult[Any, Any]
reveal_type(generator.generate({"input_ids": [1, 2]}))  # reveal: GenerationResult[Any, Any]

bare: GenerationResult = generator.generate("a")
text, stats = generator.generate("a", "mine", 20, 0.7, 20, 0.9, window=3)  # a strategy of one's own


def anything(prompt: Any, streamer: Any, options: dict[str, Any]) -> GenerationResult:
    generator.generate("a", stream=streamer, **options)
    return generator.generate(prompt)


generator.generate("a", "speculative", num_drafts=4, verification="rejection", seed=1)
generator.generate(["a", "b"], num_drafts="auto", seed=[1, 2], stop="\n", eos_token_id=[1, 2])
generator.generate("a", logits_processor=lambda ids, scores: scores, bad_words_ids=[[1, 2]])
generator.generate("a", stream=lambda piece: print(piece, end=""))
generator.generate(["a"], stream=lambda row, piece: print(row, piece))
generator.generate(1)  # error: call-overload
generator.generate(None)  # error: call-overload
generator.generate("a", max_new_tokens="20")  # error: call-overload
generator.generate("a", temperature="hot")  # error: call-overload
generator.generate("a", num_drafts="four")  # error: call-overload
generator.generate("a", verification="exact")  # error: call-overload
generator.generate("a", "uncertainty", evidence="logit")  # error: call-overload
generator.generate("a", stream=3)  # error: call-overload
generator.generate("a", stop=3)  # error: call-overload
generator.generate("a", ignore_eos="yes")  # error: call-overload

profile: ProfileResult = generator.generate_with_profile("a", routing_metric="entropy")
generator.generate_with_profile(chat, strategy="speculative", num_drafts=4)
generator.generate_with_profile("a", routing_metric="logits")  # error: arg-type
generator.generate_with_profile(["a", "b"])  # error: arg-type
reveal_type(generator.calibrate(["a"], "entropy").threshold)  # reveal: float
generator.calibrate(["a"], "perplexity")  # error: arg-type
reveal_type(generator.generate_file("a", "b").seed)  # reveal: int | None

model: Any = None
reveal_type(accelerate(model, model, num_drafts="auto", reuse=True))  # reveal: Accelerated
accelerate(model, strategy="speculativ")  # error: arg-type
accelerate(model, verification=3)  # error: arg-type
accelerate(model, num_draft=3)  # error: call-arg
compute_logu(tensor, evidence="probabilities")  # error: arg-type
