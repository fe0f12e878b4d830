"""`Texts`: a column of names, such as tenants or sessions, held as numbers and a list of names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """A column of texts: `names[codes[i]]` is the text of row i; an empty text is an unknown one.

    `codes` is int64 (rows,) and read only; each name stands once, in order of appearance.
    """

    codes: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes, dtype=np.int64)
        if codes.flags.writeable:  # somebody may write to it yet
            codes = codes.copy()
            codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)

    def __len__(self) -> int:
        return int(self.codes.size)

    def __getitem__(self, picked: Any) -> Texts:
        """Return the rows that a slice, a mask or an array of indices picks."""
        return Texts(self.codes[picked], self.names)

    def used(self) -> Texts:
        """Return the same texts with no name that no row has, in order of appearance."""
        codes, first, inverse = np.unique(self.codes, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        places = np.empty(order.size, dtype=np.int64)
        places[order] = np.arange(order.size)
        return Texts(places[inverse], tuple(self.names[code] for code in codes[order].tolist()))

    def tolist(self) -> list[str]:
        """Return the text of each row."""
        return [self.names[code] for code in self.codes.tolist()]

    @staticmethod
    def of(values: Iterable[str]) -> Texts:
        """Return the column that holds `values`.

        >>> Texts.of(["b", "a", "b"]).codes.tolist()
        [0, 1, 0]
        """
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(v, len(numbers)) for v in values), np.int64)
        return Texts(codes, tuple(numbers))

    @staticmethod
    def joined(columns: Iterable[Texts]) -> Texts:
        """Return the columns one after the other; equal names become one."""
        numbers: dict[str, int] = {}
        parts: list[npt.NDArray[np.int64]] = []
        for column in columns:
            places = [numbers.setdefault(name, len(numbers)) for name in column.names]
            parts.append(np.array(places, dtype=np.int64)[column.codes])
        return Texts(np.concatenate(parts), tuple(numbers))
