"""The embedded pair: a small and a large model that ship with the package."""

from pathlib import Path

SLM_PATH = Path(__file__).parent / "slm"
LLM_PATH = Path(__file__).parent / "llm"
