"""`Subgraph`: a part of a supernet's parameters, as leading slices; union, intersection, bytes.

A subnet is one leading box per parameter. Subgraphs are closed under intersection and union: the
union of boxes need not be a box, so each parameter holds the few boxes that no other contains.
All boxes start at the origin, which makes counting elements a short recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from supernet.arch import Arch
from supernet.definition import SupernetDefinition

Box = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """{parameter name: leading boxes}; parameters that are not used are absent.

    >>> a, b = Subgraph({"w": ((2, 3),)}), Subgraph({"w": ((4, 1),), "b": ((4,),)})
    >>> (a & b).num_elements, (a | b).num_elements
    (2, 12)
    """

    boxes: Mapping[str, tuple[Box, ...]]

    @classmethod
    def of(cls, definition: SupernetDefinition, arch: Arch) -> Subgraph:
        """Return the slices that the subnet `arch` uses. Raises ValueError outside the space."""
        shapes = definition.parameter_shapes(arch)
        return cls({name: (shape,) for name, shape in shapes.items()})

    def __and__(self, other: Subgraph) -> Subgraph:
        shared = self.boxes.keys() & other.boxes.keys()
        return Subgraph(
            {
                name: _maximal(
                    tuple(map(min, a, b)) for a in self.boxes[name] for b in other.boxes[name]
                )
                for name in sorted(shared)
            }
        )

    def __or__(self, other: Subgraph) -> Subgraph:
        names = sorted(self.boxes.keys() | other.boxes.keys())
        return Subgraph(
            {
                name: _maximal((*self.boxes.get(name, ()), *other.boxes.get(name, ())))
                for name in names
            }
        )

    def __contains__(self, other: Subgraph) -> bool:
        return (self | other).num_elements == self.num_elements

    def select(self, wanted: Callable[[str, Box], bool]) -> Subgraph:
        """Return the boxes for which `wanted(parameter name, box)` holds."""
        kept = {n: tuple(b for b in boxes if wanted(n, b)) for n, boxes in self.boxes.items()}
        return Subgraph({name: boxes for name, boxes in kept.items() if boxes})

    @property
    def num_elements(self) -> int:
        """How many parameters are covered."""
        return sum(_count(boxes) for boxes in self.boxes.values())

    def num_bytes(self, bytes_per_element: int = 4) -> int:
        """Bytes of the covered parameters (fp32 by default)."""
        return self.num_elements * bytes_per_element


def _maximal(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Keep the boxes that no other box contains, in a canonical order."""
    distinct = sorted(set(boxes), reverse=True)
    return tuple(
        box
        for box in distinct
        if not any(
            other != box and all(o >= b for o, b in zip(other, box, strict=True))
            for other in distinct
        )
    )


def _count(boxes: tuple[Box, ...]) -> int:
    """Count the elements of a union of boxes that all start at the origin."""
    if not boxes:
        return 0
    if not boxes[0]:
        return 1
    total, previous = 0, 0
    for level in sorted({box[0] for box in boxes}):
        below = tuple({box[1:] for box in boxes if box[0] >= level})
        total += (level - previous) * _count(below)
        previous = level
    return total
