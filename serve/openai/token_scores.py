"""Log-probabilities in OpenAI's two forms: a list of tokens (chat), columns (completions)."""

from __future__ import annotations

from typing import Any

from serve.models.text_coder import TextCoder


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
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries
        ],
        "text_offset": offsets,
    }


def _named(coder: TextCoder, token: int, logprob: float) -> dict[str, Any]:
    text = coder.decode([token])
    # What can't come is -inf, which JSON has no word for; OpenAI's is -9999.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}
