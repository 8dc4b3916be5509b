"""Find a threshold for routing: look at the SLM alone, choose, look at what was routed.

python examples/example_profiling.py
python examples/example_profiling.py "import os" 0.3
"""

import sys

from hybridgen import HybridGenerator

PROMPT = "def quicksort(items):\n"


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else PROMPT
    share = float(sys.argv[2]) if len(sys.argv) > 2 else 0.2
    generator = HybridGenerator()
    settings = {"max_new_tokens": 150, "temperature": 0.6, "ignore_eos": True, "seed": 1}

    # 1. The SLM alone: how unsure is it, and of what?
    alone = generator.generate_with_profile(prompt, **settings)
    alone.print_summary()

    # 2. A threshold that this share of its tokens lies above.
    threshold = alone.suggest_threshold(share)
    print(f"\n{share:.0%} of these tokens have an uncertainty above {threshold:.4f}\n")

    # 3. Routed by it: the LLM writes where the SLM is unsure, so that the text is another one.
    routed = generator.generate_with_profile(prompt, threshold=threshold, **settings)
    routed.print_summary()
    written = routed.model_usage["llm"] / len(routed)
    print(f"\nthe LLM wrote {written:.0%} of the routed text, marked by |:\n")
    print(prompt + "".join(marked(token) for token in routed))

    # 4. Speculation does not route: its profile shows which drafts were accepted.
    drafted = generator.generate_with_profile(prompt, strategy="speculative", **settings)
    rejected = [token for token in drafted if token.accepted is False]
    print(f"\nspeculation rejected {len(rejected)} drafts, the first of them:")
    for token in rejected[:5]:
        instead = f"{token.rejected_text!r} (p = {token.p:.3f}), {token.token_text!r} stands"
        print(f"  at {token.position:3}: {instead}")


def marked(token) -> str:
    return f"|{token.token_text}|" if token.model_used == "llm" else token.token_text


if __name__ == "__main__":
    main()
