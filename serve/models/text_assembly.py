"""`TextAssembly`: the text of a stream's tokens up to a stop string, in pieces that stay true.

Held back is what may still change: half a character (`TextStream`), and an end of the text that may
be the beginning of a stop string, which can come in several tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from serve.models.text_coder import TextCoder
from supernet.tokenizer import TextStream


class TextAssembly:
    """Takes the tokens of one text; `is_over` once a stop string has come, which is left out."""

    def __init__(
        self,
        coder: TextCoder,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        behind: Sequence[int] = (),
    ) -> None:
        """Begin behind the ids of a prompt, whose text is not given out again.

        Stop strings are not looked for in the first `min_tokens`.
        """
        self.is_over = False
        self._characters = TextStream(coder, behind)
        self._stop = tuple(stop)
        self._free_tokens = min_tokens
        self._held = ""

    def push(self, token: int) -> str:
        """Take a token in; return the text that is certain now, which may be empty."""
        return self._given(self._characters.push(token))

    def finish(self) -> str:
        """Return what was held back, when no more tokens come."""
        if self.is_over:
            return ""
        given = self._given(self._characters.finish())
        if not self.is_over:
            given, self._held = given + self._held, ""
        return given

    def _given(self, piece: str) -> str:
        if not self._stop or self.is_over:
            return "" if self.is_over else piece
        if self._free_tokens > 0:
            self._free_tokens -= 1
            return piece
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.is_over, self._held = True, ""
            return text[: min(found)]
        held = max(_begun(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


class StopWatch:
    """Says of each token of a text, in order, whether a stop string has come with it."""

    def __init__(
        self, coder: TextCoder, stop: Sequence[str], min_tokens: int, behind: Sequence[int] = ()
    ) -> None:
        """Watch a text as `TextAssembly` takes it."""
        self._assembly = TextAssembly(coder, stop, min_tokens, behind)

    def __call__(self, token: int) -> bool:
        self._assembly.push(token)
        return self._assembly.is_over


def _begun(text: str, stop: str) -> int:
    """Return how much of the end of a text may be the beginning of a stop string."""
    for count in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:count]):
            return count
    return 0
