"""`ServedForm`: what a policy chooses: a subnet and the numbers that it computes in.

Its id is the subnet's, with a suffix where it is not float: `d2-w1-r32`, `d2-w1-r32-i8` (int8) and
`d2-w1-r32-sb` (signed binary weights). So it goes wherever a subnet's id goes: profiles,
`accuracy.json`, `fixed:`, export.
"""

from __future__ import annotations

from typing import NamedTuple

_SUFFIXES = {"fp32": "", "int8": "-i8", "signed_binary": "-sb"}
PRECISIONS = tuple(_SUFFIXES)


class ServedForm(NamedTuple):
    """A subnet in one precision.

    >>> ServedForm.parse("d2-w1-r32-i8")
    ServedForm(subnet_id='d2-w1-r32', precision='int8')
    >>> ServedForm("d2-w1-r32", "int8").form_id
    'd2-w1-r32-i8'
    """

    subnet_id: str
    precision: str = "fp32"

    @property
    def form_id(self) -> str:
        """The id: matches `[a-z0-9._-]+`. Raises ValueError for an unknown precision."""
        if self.precision not in _SUFFIXES:
            raise ValueError(f"precision is {self.precision!r}, allowed {', '.join(PRECISIONS)}")
        return self.subnet_id + _SUFFIXES[self.precision]

    @property
    def twin(self) -> ServedForm:
        """The same subnet in fp32, which serves where another form is not at hand."""
        return ServedForm(self.subnet_id)

    @classmethod
    def parse(cls, form_id: str) -> ServedForm:
        """Read an id; one without a suffix is fp32. No arch's own id ends like a suffix."""
        for precision, suffix in _SUFFIXES.items():
            if suffix and form_id.endswith(suffix):
                return cls(form_id.removesuffix(suffix), precision)
        return cls(form_id)
