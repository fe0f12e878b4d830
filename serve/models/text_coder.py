"""`TextCoder`: what turns text into a decoder's tokens and back; `ByteCoder` for timed devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TextCoder(Protocol):
    """A checkpoint's tokenizer (`supernet.tokenizer.Tokenizer`), or what stands in for one."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text as it stands."""
        ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of a chat, ready for the answer. Raises ValueError for what can't be."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token that begins or ends inside a character."""
        ...

    def token_name(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it, also one that leaves no trace in a text."""
        ...


class ByteCoder:
    """One token for each byte of Latin-1: the text of a device that only sleeps."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text; what Latin-1 lacks is `?`."""
        return list(text.encode("latin-1", errors="replace"))

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the bytes of a chat written line by line."""
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return self.encode("".join(lines) + "assistant: ")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the characters of bytes."""
        return bytes(ids).decode("latin-1")

    def token_bytes(self, token_id: int) -> bytes:
        """Return a character in UTF-8: each is a token."""
        return chr(token_id).encode()

    def token_name(self, token_id: int) -> str:
        """Return a token's character."""
        return chr(token_id)
