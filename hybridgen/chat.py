"""A conversation with a pair: messages, and replies through the LLM's chat template."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybridgen.names import StrategyName
from hybridgen.prompts import of_chat
from hybridgen.result import GenerationResult
from hybridgen.strategies.custom import GenerationStrategy
from hybridgen.text import Stopped

if TYPE_CHECKING:
    from hybridgen.generator import HybridGenerator

NEW_TOKENS = 1024  # of a reply; most end sooner, by themselves


@dataclass
class Chat:
    """What has been said, and how to go on.

    system    the system prompt; None: the template's own, if it has one
    kwargs    what else the template is told, such as enable_thinking

    Raises ValueError where the LLM's tokenizer has no chat template.
    """

    generator: "HybridGenerator"
    system: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not getattr(self.generator.tokenizer, "chat_template", None):
            raise ValueError(
                "the LLM's tokenizer has no chat template: the model was not made for chats; take "
                "an instruct model, such as one of `hybridgen pairs`, or continue a plain text"
            )
        self.reset()

    def reset(self) -> None:
        """Forget what has been said."""
        self.messages = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})

    def opened_by(self, text: Any) -> list[int]:
        """The token ids of what has been said, ``text`` of the user's, and the reply's beginning.

        text    a string, or a list of messages
        """
        new = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return of_chat(self.generator.tokenizer, [*self.messages, *new], kwargs=self.kwargs)

    def reply(
        self,
        text: str,
        stream: Callable[[str], object],
        strategy: StrategyName | str = "speculative",
        max_new_tokens: int = NEW_TOKENS,
        **options: Any,
    ) -> GenerationResult[str, list[int]] | None:
        """Say ``text``, and what is answered, piece by piece, to ``stream``; None: it was stopped.

        stream            called with each piece; it may raise `hybridgen.text.Stopped`
        max_new_tokens    fewer where the context ends sooner
        **options         the others of `generate`

        A reply that was stopped counts as said as far as it came. Where an error is raised, nothing
        was said. Raises as `generate` does; ValueError for a chat that fills the context.
        """
        prompt, pieces = self.opened_by(text), list[str]()

        def show(piece: str) -> None:
            pieces.append(piece)
            stream(piece)

        room = self.generator.pair.context() - len(prompt)
        if room < 1:
            raise ValueError(
                f"the chat has {len(prompt)} tokens, and the generator "
                f"{self.generator.pair.context()} positions: nothing fits any more"
            )
        custom = isinstance(self.generator.strategies.get(strategy), GenerationStrategy)
        try:
            result = self.generator.generate(
                prompt,
                strategy,
                min(max_new_tokens, room),
                reuse=not custom,  # which read their prompts themselves
                stream=show,
                print_stats=False,
                **options,
            )
        except Stopped:
            result = None
        self.messages.append({"role": "user", "content": text})
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return result
