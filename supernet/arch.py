"""`Arch`: the choice of one subnet, as plain values.

Entries exist only for what is present: depth and width have one entry per stage, expand, kernel
and heads one per block that is kept, in forward order. So two descriptions of the same subnet are
equal, which is not true of descriptors that keep entries of skipped blocks. An empty tuple means
that the family is not elastic in that dimension.

Two fields say how weights are used, not which: `resolution`, and a graph network's `fanout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

Number = int | float

_LETTERS = {
    "depth": "d",
    "width": "w",
    "expand": "e",
    "kernel": "k",
    "heads": "h",
    "fanout": "f",
}

ALL_NEIGHBOURS = 2**31 - 1
"""The fan-out of a hop at which every neighbour is read; `all` in ids, in letters and in JSON."""
_ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One subnet of a search space. Immutable and hashable; legality is the space's business.

    >>> Arch(resolution=32, depth=(1, 2), width=(1.0, 0.5), expand=(1.0, 0.5, 0.5)).subnet_id
    'd1_2-w1_0.5-e1_0.5_0.5-r32'
    """

    resolution: int
    depth: tuple[int, ...]
    width: tuple[float, ...] = ()
    expand: tuple[float, ...] = ()
    kernel: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    fanout: tuple[int, ...] = ()

    @property
    def subnet_id(self) -> str:
        """Canonical short name, unique within one space; matches `[a-z0-9._-]+`.

        >>> Arch(resolution=32, depth=(2, 2), width=(0.5, 0.5), expand=(1.0,) * 4).subnet_id
        'd2-w0.5-e1-r32'
        >>> Arch(resolution=1, depth=(2,), width=(1.0,), fanout=(15, ALL_NEIGHBOURS)).subnet_id
        'd2-w1-f15_all-r1'
        """
        parts = [letter + _join(getattr(self, name)) for name, letter in _LETTERS.items()]
        return "-".join([p for p in parts if len(p) > 1] + [f"r{self.resolution}"])

    def to_json(self) -> dict[str, Any]:
        """Return plain data: the fields that are not empty."""
        data: dict[str, Any] = asdict(self)
        return {name: _plain(value) for name, value in data.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Arch:
        """Build from `to_json` data. Raises ValueError naming an unknown or malformed field.

        >>> arch = Arch(resolution=8, depth=(1,), kernel=(3,))
        >>> Arch.from_json(arch.to_json()) == arch
        True
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ValueError(f"arch has unknown {', '.join(unknown)}; allowed {', '.join(known)}")
        missing = [name for name in ("resolution", "depth") if name not in data]
        if missing:
            raise ValueError(f"arch lacks {', '.join(missing)}")
        return cls(**{name: _field(name, value) for name, value in data.items()})


def _join(values: tuple[Number, ...]) -> str:
    names = [_ALL if value == ALL_NEIGHBOURS else f"{value:g}" for value in values]
    return names[0] if len(set(names)) == 1 else "_".join(names)


def _plain(value: int | tuple[Number, ...]) -> int | list[Number | str]:
    if isinstance(value, int):
        return value
    return [_ALL if entry == ALL_NEIGHBOURS else entry for entry in value]


def _field(name: str, value: object) -> Any:
    if name == "resolution":
        if not isinstance(value, int):
            raise ValueError(f"arch resolution is {value!r}, expected a whole number")
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"arch {name} is {value!r}, expected a list of numbers")
    whole = name in ("depth", "kernel", "heads", "fanout")
    entries: list[Number] = []
    for entry in value:  # pyright: ignore[reportUnknownVariableType]
        if name == "fanout" and entry == _ALL:
            entries.append(ALL_NEIGHBOURS)
            continue
        if isinstance(entry, bool) or not isinstance(entry, int if whole else (int, float)):
            kind = "whole numbers" if whole else "numbers"
            raise ValueError(f"arch {name} is {value!r}, expected a list of {kind}")
        entries.append(entry if whole else float(entry))
    return tuple(entries)
