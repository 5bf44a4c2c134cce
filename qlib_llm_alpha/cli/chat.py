"""A chat at the keyboard: questions on standard output, answers from standard input."""

from __future__ import annotations

from qlib_llm_alpha.cli.printing import shown
from qlib_llm_alpha.errors import LLMError


class Keyboard:
    """The person at a terminal, or a file of answers; the end of the input ends the chat."""

    def ask(self, text: str) -> str:
        """Print a question and return one line."""
        self.say(text)
        try:
            return input("> ")
        except EOFError:
            return "/done"
        except KeyboardInterrupt as left:
            raise LLMError(
                "the chat was left; everything that was said is kept; repeat the call with --resume to go on"
            ) from left

    def say(self, text: str) -> None:
        """Print a text; what a terminal might take for a command is shown as its escape."""
        print(shown(text))
