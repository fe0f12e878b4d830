"""Tokens as clients meet them: spaces that begin words, parts of characters, names, offsets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.openai.token_scores import completion_logprobs
from supernet import define_supernet, save_checkpoint
from supernet.text import TextSpec
from supernet.weights.import_decoder import decoder_checkpoint

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")

ROWS = 256  # of the network's vocabulary
C3 = "\u00c3"  # what byte-level tokenizers write the byte C3 as
Streams = Callable[..., Any]


def save_decoder(encoder: Any, folder: Path, chat_template: str = "", ends: Any = ()) -> str:
    """Save a random decoder with a tokenizer, whose texts end by `ends`; return its folder."""
    definition = define_supernet("decoder_tiny", vocab_size=ROWS, max_positions=512)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 + (tensor.dim() == 1)
        for name, tensor in definition.on_meta().state_dict().items()
    }
    text = TextSpec(tokenizer=encoder.to_str(), chat_template=chat_template, eos_ids=ends)
    ids = [torch.arange(64)[None]]
    save_checkpoint(decoder_checkpoint(definition, state, ids, name="lm", text=text), folder)
    return str(folder)


def byte_level() -> Any:
    """A tokenizer with a token for each byte, so that characters take several."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    return encoder


def words_with_marks() -> Any:
    """A tokenizer that marks where words begin, as those of Llama 2 and Mistral do."""
    vocabulary = {token: i for i, token in enumerate(["\u2581", "a", "b", "c", "\u2581c"])}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("\u2581", "c")]))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    encoder.decoder = tokenizers.decoders.Metaspace()
    return encoder


async def asked(streams: Any, path: str, **fields: Any) -> tuple[int, Any]:
    body = {"model": "lm", "max_tokens": 3, "temperature": 0, **fields}
    response = await streams.client.post(f"/v1/{path}", json=body)
    return response.status_code, response.json()


def test_the_space_between_a_prompt_and_what_follows_is_told(
    serving_streams: Streams, tmp_path: Path
) -> None:
    encoder = words_with_marks()
    always = {"logit_bias": {str(encoder.token_to_id("\u2581c")): 100}}

    async def main() -> None:
        checkpoint = save_decoder(encoder, tmp_path / "lm")
        async with serving_streams(checkpoint=checkpoint, kv_tokens=512) as streams:
            _, answer = await asked(streams, "completions", prompt="ab", logprobs=0, **always)
            (choice,) = answer["choices"]
            assert choice["text"] == " c c c"
            assert choice["logprobs"]["tokens"] == [" c"] * 3
            assert choice["logprobs"]["text_offset"] == [0, 2, 4]
            events = await streams.events("/v1/completions", prompt="ab", max_tokens=3, **always)
            assert "".join(e["choices"][0]["text"] for e in events[:-1]) == " c c c"
            _, short = await asked(streams, "completions", prompt="ab", stop=[" c"], **always)
            assert (short["choices"][0]["text"], short["choices"][0]["finish_reason"]) == (
                "",
                "stop",
            )
            assert short["usage"]["completion_tokens"] == 1

    asyncio.run(main())


def test_parts_of_characters_are_told_by_their_bytes(
    serving_streams: Streams, tmp_path: Path
) -> None:
    """Half of these tokens decode to the same sign, and so were one entry before."""
    encoder = byte_level()
    always = {"logit_bias": {str(encoder.token_to_id(C3)): 100}}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    async def main() -> None:
        checkpoint = save_decoder(encoder, tmp_path / "lm", template)
        async with serving_streams(checkpoint=checkpoint, kv_tokens=512) as streams:
            _, answer = await asked(streams, "completions", prompt="ab", logprobs=20, **always)
            scores = answer["choices"][0]["logprobs"]
            assert scores["tokens"] == ["bytes:\\xc3"] * 3
            assert [len(top) for top in scores["top_logprobs"]] == [20] * 3
            _, answer = await asked(
                streams,
                "chat/completions",
                messages=[{"role": "user", "content": "ab"}],
                logprobs=True,
                top_logprobs=20,
                **always,
            )
            entries = answer["choices"][0]["logprobs"]["content"]
            assert [entry["bytes"] for entry in entries] == [[0xC3]] * 3
            alternatives = [bytes(top["bytes"]) for top in entries[0]["top_logprobs"]]
            assert {len(each) for each in alternatives} == {1}
            assert len(set(alternatives)) == 20

    asyncio.run(main())


def test_offsets_count_characters_however_many_tokens_they_take() -> None:
    entries = [
        {"token": token, "bytes": None if of is None else list(of), "logprob": -1.0,
         "top_logprobs": []}
        for token, of in (("\\xc3", b"\xc3"), ("\\xa9", b"\xa9"), ("<|end|>", None), ("xy", b"xy"))
    ]  # fmt: skip
    scores = completion_logprobs(entries, 5)
    assert scores["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "<|end|>", "xy"]
    assert scores["text_offset"] == [5, 6, 6, 6]


def test_offsets_of_a_stream_are_those_of_the_whole_while_text_is_held_back(
    serve_streams: Streams,
) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            whole = (await streams.complete("Hi", max_tokens=8, logprobs=0)).json()["choices"][0]
            never = whole["text"][3] + "\u0101"  # held back until the next token comes
            events = await streams.events(
                "/v1/completions", prompt="Hi", max_tokens=8, logprobs=0, stop=[never]
            )
            offsets = [
                offset
                for event in events[:-1]
                for offset in (event["choices"][0]["logprobs"] or {}).get("text_offset", ())
            ]
            assert offsets == whole["logprobs"]["text_offset"] == list(range(8))

    asyncio.run(main())


def test_tokens_that_only_the_tokenizer_has_are_refused(
    serving_streams: Streams, tmp_path: Path
) -> None:
    """One that was added, to a network that was not made larger."""
    encoder = byte_level()
    encoder.add_special_tokens(["<|new|>"])
    assert encoder.token_to_id("<|new|>") == ROWS

    async def main() -> None:
        checkpoint = save_decoder(encoder, tmp_path / "lm", ends=(7, ROWS))
        async with serving_streams(checkpoint=checkpoint, kv_tokens=512) as streams:
            status, answer = await asked(streams, "completions", prompt="a<|new|>b")
            assert status == 400, answer
            assert "has token 256, allowed 0 to 255" in answer["error"]["message"]
            status, answer = await asked(streams, "completions", prompt="ab", min_tokens=3)
            assert status == 200, answer
            assert answer["usage"]["completion_tokens"] == 3

    asyncio.run(main())


def test_what_is_no_unicode_is_said_to_be_none(serving_streams: Streams, tmp_path: Path) -> None:
    async def main() -> None:
        checkpoint = save_decoder(byte_level(), tmp_path / "lm")
        async with serving_streams(checkpoint=checkpoint, kv_tokens=512) as streams:
            body = json.dumps({"model": "lm", "prompt": "ab\ud800"})
            response = await streams.client.post("/v1/completions", content=body)
            assert response.status_code == 400, response.text
            assert "character 2 of the text is none of Unicode" in response.text

    asyncio.run(main())
