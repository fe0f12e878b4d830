"""`Tokenizer`: text to ids and back, on the `tokenizers` package (extra `lm`)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol
from unicodedata import combining

from supernet.text import TextSpec

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of half a character
_MOST_HELD = 8  # tokens: what is no character by then is none
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte as tokenizers write it that fall back to bytes
_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenizerMissingError(ImportError):
    """The `tokenizers` package is not installed."""


class Tokenizer:
    """Encodes prompts and chats, decodes ids; holds no state between calls."""

    def __init__(self, text: TextSpec):
        """Raises TokenizerMissingError without the package, ValueError for a malformed file."""
        try:
            from tokenizers import Tokenizer as Encoder
        except ImportError:
            raise TokenizerMissingError(
                "text needs the tokenizers package: pip install 'supernet-serving[lm]'"
            ) from None
        try:
            self._encoder: Any = Encoder.from_str(text.tokenizer)
        except Exception as error:  # the package raises bare Exception
            raise ValueError(f"the checkpoint's tokenizer.json can't be read ({error})") from None
        # A file keeps how whoever saved it had texts cut and filled up, for batches of theirs.
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._text = text

    @property
    def vocab_size(self) -> int:
        """How many tokens the tokenizer knows; a network may have more rows than that."""
        return int(self._encoder.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text as it stands; special tokens written out are recognised.

        Raises ValueError for characters that the tokenizer would leave out without a word, or that
        are none.
        """
        self._check_known(text)
        return list(self._encoder.encode(text).ids)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of a chat, ready for the assistant's answer.

        Messages have `role` and `content`. Raises ValueError without a template, for one that
        refuses the messages, or for characters that the tokenizer would leave out.
        """
        if not self._text.chat_template:
            raise ValueError(
                "this checkpoint has no chat template; prompt it without --chat, or at "
                "/v1/completions"
            )
        from jinja2 import TemplateError

        try:
            rendered = (
                _template_environment()
                .from_string(self._text.chat_template)
                .render(
                    messages=list(messages),
                    add_generation_prompt=True,
                    bos_token=self._token(self._text.bos_id),
                    eos_token=self._token(next(iter(self._text.eos_ids), None)),
                )
            )
        except (TemplateError, TypeError, LookupError, ArithmeticError, ValueError) as error:
            raise ValueError(f"the chat template refuses these messages ({error})") from None
        self._check_known(rendered)
        return list(self._encoder.encode(rendered, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens leave no trace."""
        return self._encoder.decode(list(ids))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token that begins or ends inside a character."""
        token = self.token_name(token_id)
        byte = _BYTE.fullmatch(token)
        if byte:
            return bytes.fromhex(byte[1])
        values = _byte_values()
        if all(letter in values for letter in token):
            return bytes(values[letter] for letter in token)
        return token.encode()

    def token_name(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it; for an id that has none, its number."""
        return self._encoder.id_to_token(token_id) or f"token_id:{token_id}"

    def _check_known(self, text: str) -> None:
        half = _SURROGATE.search(text)
        if half is not None:
            raise ValueError(
                f"character {half.start()} of the text is none of Unicode (a surrogate alone: of "
                "bytes that are not UTF-8, or half of a pair)"
            )
        if self._knows_bytes:
            return
        lost = "".join(c for c in dict.fromkeys(text) if _is_seen(c) and not self._has(c))
        if lost:
            raise ValueError(
                f"the tokenizer has no token for {lost[:20]!r}; leave these characters out, or "
                "use a checkpoint whose tokenizer knows all bytes"
            )

    @cached_property
    def _knows_bytes(self) -> bool:
        """Whether there is a token for every byte, so that no text is left out."""
        known = self._encoder.token_to_id
        return all(known(letter) is not None for letter in _byte_values()) or all(
            known(f"<0x{byte:02X}>") is not None for byte in range(256)
        )

    def _has(self, character: str) -> bool:
        """Whether tokens stand for a character: not for half of it, or a mark before it alone."""
        ids = self._encoder.encode(character, add_special_tokens=False).ids
        text = self._encoder.decode(ids, skip_special_tokens=False)
        is_half = _INCOMPLETE in text and character != _INCOMPLETE
        return bool(text.strip()) and not is_half

    def _token(self, token_id: int | None) -> str:
        return "" if token_id is None else self._encoder.id_to_token(token_id) or ""


class TokenDecoder(Protocol):
    """What makes text of ids."""

    def decode(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """Decodes ids as they come, holding back what is not a whole character yet.

    A token may end inside a character, and may look different alone than behind another one, so
    what is new is the difference of two decodings that begin at the same earlier token.
    """

    def __init__(self, tokenizer: TokenDecoder, behind: Sequence[int] = ()):
        """`behind` are the ids before the first, whose text is known: that of a prompt."""
        self._tokenizer = tokenizer
        self._ids = list(behind[-_MOST_HELD:])
        if self._ids and tokenizer.decode(self._ids).endswith(_INCOMPLETE):
            self._ids = []  # of half a character nothing can be told
        self._begin = 0  # from where ids are decoded, and
        self._told = len(self._ids)  # up to where their text was given out

    def push(self, token_id: int) -> str:
        """Take in an id; return the text that it completes, which may be empty."""
        self._ids.append(token_id)
        before = self._tokenizer.decode(self._ids[self._begin : self._told])
        now = self._tokenizer.decode(self._ids[self._begin :])
        is_held = now.endswith(_INCOMPLETE) and len(self._ids) - self._told < _MOST_HELD
        if is_held or len(now) <= len(before):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """Return what was held back, when no more ids come."""
        before = self._tokenizer.decode(self._ids[self._begin : self._told])
        now = self._tokenizer.decode(self._ids[self._begin :])
        self._begin = self._told = len(self._ids)
        return now[len(before) :]


def _byte_values() -> dict[str, int]:
    """Return the letters that byte-level tokenizers write bytes as, and which byte each is.

    GPT-2's: bytes that show stand for themselves.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(shown))
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _template_environment() -> Any:
    """Return what `transformers` renders chat templates in."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
    """Jinja's own filter writes what is safe inside HTML, which no prompt is."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **form)


def _is_seen(character: str) -> bool:
    """Whether a character shows by itself: others (controls, accents) may be normalised away."""
    return character.isprintable() and not character.isspace() and not combining(character)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
