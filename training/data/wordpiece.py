"""WordPiece (Schuster and Nakajima, 2012) with the vocabulary file of a BERT folder.

Text is cleaned, split at spaces and punctuation (every CJK character stands alone), lower-cased
and stripped of accents where the vocabulary is uncased, and each word is cut greedily into the
longest known pieces. It exists so that encoders can be tried on text without a further package.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

_MAX_WORD = 100  # longer words become [UNK], as in the original
_CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2FA1F), (0xF900, 0xFAFF))


class WordPiece:
    """Turns texts into (B, N) token ids, padded with `pad_id`."""

    def __init__(self, vocabulary: Iterable[str], *, is_lowercase: bool = True):
        """Raises ValueError when a special token is missing."""
        self._ids = {token: i for i, token in enumerate(vocabulary)}
        missing = [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if t not in self._ids]
        if missing:
            raise ValueError(f"vocabulary lacks {', '.join(missing)}")
        self._is_lowercase = is_lowercase
        self.pad_id = self._ids["[PAD]"]

    @classmethod
    def from_folder(cls, folder: str | Path, *, is_lowercase: bool = True) -> WordPiece:
        """Read `vocab.txt`. Raises OSError when there is none."""
        text = (Path(folder) / "vocab.txt").read_text(encoding="utf-8")
        return cls(text.split("\n"), is_lowercase=is_lowercase)

    def encode(self, texts: Iterable[str], max_tokens: int = 128) -> torch.Tensor:
        """Return (B, N) ids: [CLS], the pieces, [SEP], then padding up to the longest text."""
        rows = [
            [self._ids["[CLS]"], *self._pieces(text, max_tokens - 2), self._ids["[SEP]"]]
            for text in texts
        ]
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows])

    def _pieces(self, text: str, limit: int) -> list[int]:
        ids: list[int] = []
        for word in _words(text, self._is_lowercase):
            ids += self._cut(word)
        return ids[:limit]

    def _cut(self, word: str) -> list[int]:
        if len(word) > _MAX_WORD:
            return [self._ids["[UNK]"]]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = self._ids.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return [self._ids["[UNK]"]]
            ids.append(piece)
            start = end
        return ids


def _words(text: str, is_lowercase: bool) -> Iterator[str]:
    if is_lowercase:
        decomposed = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    word = ""
    for char in text:
        if char.isspace() or _is_control(char):
            word, done = "" if char.isspace() else word, word if char.isspace() else ""
        elif _stands_alone(char):
            yield from filter(None, (word,))
            word, done = "", char
        else:
            word, done = word + char, ""
        if done:
            yield done
    if word:
        yield word


def _is_control(char: str) -> bool:
    return unicodedata.category(char).startswith("C") or char == "\ufffd"


def _stands_alone(char: str) -> bool:
    code = ord(char)
    is_ascii_symbol = code < 128 and not char.isalnum()
    is_cjk = any(low <= code <= high for low, high in _CJK)
    return is_ascii_symbol or is_cjk or unicodedata.category(char).startswith("P")
