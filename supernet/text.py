"""`TextSpec`: how text becomes a decoder's tokens; it travels with the checkpoint.

The tokenizer is the content of a `tokenizer.json` as the `tokenizers` package writes it, the chat
template is Jinja as `transformers` renders it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """A tokenizer, a template for chats (empty: none), and the ids that begin and end a text."""

    tokenizer: str
    chat_template: str = ""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        try:
            is_object = isinstance(json.loads(self.tokenizer), dict)
        except json.JSONDecodeError:
            is_object = False
        if not is_object:
            raise ValueError("tokenizer is not the JSON object that a tokenizer.json holds")

    def to_json(self) -> dict[str, Any]:
        """Return plain data without the tokenizer, which is a file of its own."""
        return {
            "chat_template": self.chat_template,
            "bos_id": self.bos_id,
            "eos_ids": list(self.eos_ids),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], tokenizer: str) -> TextSpec:
        """Rebuild from `to_json` data. Raises ValueError when a field is unknown or malformed."""
        try:
            values = {**data, "eos_ids": tuple(map(int, data.get("eos_ids", ())))}
            return cls(tokenizer=tokenizer, **values)
        except TypeError as error:
            raise ValueError(f"text: {error}") from None
