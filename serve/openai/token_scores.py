"""Log-probabilities in OpenAI's two forms: a list of tokens (chat), columns (completions).

A token that begins or ends inside a character is told by its bytes, `\\xc3`, and one that leaves no
trace in a text by its name, so that any two can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve.models.text_coder import TextCoder

_PART = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of a part of a character
_CONTINUES = 0x80  # the two highest bits of a byte that begins no character of UTF-8


def chat_entry(coder: TextCoder, token: int, score: Any) -> dict[str, Any]:
    """Return a token of a chat with its log-probability and the likeliest ones."""
    return {
        **_named(coder, token, score.logprob),
        "top_logprobs": [_named(coder, other, logprob) for other, logprob in score.top],
    }


def chat_logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what stands beside the text of these tokens."""
    return {"content": entries, "refusal": None}


def completion_logprobs(entries: list[dict[str, Any]], offset: int) -> dict[str, Any]:
    """Return the columns of tokens; `offset` is where the first one's text begins."""
    offsets: list[int] = []
    for entry in entries:
        offsets.append(offset)
        offset += num_characters([entry])
    return {
        "tokens": [_in_column(entry) for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {_in_column(top): top["logprob"] for top in entry["top_logprobs"]} for entry in entries
        ],
        "text_offset": offsets,
    }


def num_characters(entries: Iterable[dict[str, Any]]) -> int:
    """Return how many characters begin in these tokens."""
    return sum(byte & 0xC0 != _CONTINUES for each in entries for byte in each["bytes"] or ())


def _in_column(entry: dict[str, Any]) -> str:
    """Return a token as OpenAI's completions name it: with a mark where it is no text."""
    is_part = entry["bytes"] and bytes(entry["bytes"]) != entry["token"].encode()
    return f"bytes:{entry['token']}" if is_part else entry["token"]


def _named(coder: TextCoder, token: int, logprob: float) -> dict[str, Any]:
    # Behind itself: alone, some tokenizers leave out the space that a word begins with.
    text = coder.decode([token, token])[len(coder.decode([token])) :]
    written: list[int] | None = list(text.encode())
    if _PART in text:
        part = coder.token_bytes(token)
        written, text = list(part), _spelled(part)
    elif not text:
        written, text = None, coder.token_name(token)
    # What can't come is -inf, which JSON has no word for; OpenAI's is -9999.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": written}


def _spelled(part: bytes) -> str:
    """Return bytes as text if they are whole characters after all, else each as `\\xc3`."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in part)
