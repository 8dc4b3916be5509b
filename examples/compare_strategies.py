"""A first program: one prompt, every strategy, side by side, with the pair that ships along.

python examples/compare_strategies.py
python examples/compare_strategies.py "import os"
"""

import sys

from hybridgen import HybridGenerator

PROMPT = "def quicksort(items):\n"


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else PROMPT
    generator = HybridGenerator()
    settings = {"max_new_tokens": 100, "ignore_eos": True, "seed": 1, "print_stats": False}
    texts = {}
    print(f"{'strategy':<14}{'tokens/s':>10}{'steps':>8}{'SLM tokens':>12}{'LLM tokens':>12}")
    for name in generator.strategies:
        generator.generate(prompt, name, **{**settings, "max_new_tokens": 10})  # warm up
        text, stats = generator.generate(prompt, name, **settings)
        texts[name] = text
        print(
            f"{name:<14}{stats['tokens_per_second']:>10.0f}{stats['decode_steps']:>8}"
            f"{stats['slm_tokens']:>12}{stats['llm_tokens']:>12}"
        )
    for name, text in texts.items():
        print(f"\n--- {name} ---\n{prompt}{text}")


if __name__ == "__main__":
    main()
