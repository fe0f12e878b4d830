"""Insertion of the operators into a trained supernet (SuperServe, NSDI'25, algorithm 1).

Every stage of blocks becomes a LayerSelect, every convolution, linear layer, embedding,
LayerNorm and RMSNorm a WeightSlice, every BatchNorm a SubnetNorm; each in place, under the name it
had, sharing its parameters. A network into which they were inserted before is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from subnetact.views.operators import (
    Conv2dSlice,
    EmbeddingSlice,
    LayerNormSlice,
    LayerSelect,
    LinearSlice,
    RMSNormSlice,
    Route,
    SamePadConv2dSlice,
    SubnetNorm,
    WeightSlice,
)
from supernet.layers.blocks import BlockSequence, SamePadConv2d

Operator = LayerSelect | WeightSlice | SubnetNorm

# Which operator takes the place of which module; a subclass stands before its base.
_OPERATORS: tuple[tuple[type[nn.Module], Callable[[Any, Route], Operator]], ...] = (
    (SamePadConv2d, SamePadConv2dSlice),
    (nn.Conv2d, Conv2dSlice),
    (nn.Linear, LinearSlice),
    (nn.BatchNorm2d, SubnetNorm),
    (nn.LayerNorm, LayerNormSlice),
    (nn.RMSNorm, RMSNormSlice),
    (nn.Embedding, EmbeddingSlice),
)


class Insertion(NamedTuple):
    """What was inserted: operators by module name, and the route that they share."""

    route: Route
    operators: dict[str, Operator]

    def summary(self) -> str:
        """One line for people, e.g. `3 LayerSelect, 15 Conv2dSlice, ...`."""
        kinds = [type(operator).__name__ for operator in self.operators.values()]
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def insert_operators(net: nn.Module) -> Insertion:
    """Insert the operators into `net` in place and return them. Idempotent.

    Raises ValueError naming a parametrised module that no operator covers: its parameters would
    be served whole to every subnet.
    """
    known: Insertion | None = getattr(net, "_subnetact_insertion", None)
    if known is not None:
        return known
    _check_covered(net)
    route = Route()
    operators: dict[str, Operator] = {}
    for name, module in list(net.named_modules()):
        operator = _operator_for(module, route)
        if operator is not None:
            operators[name] = operator
            _replace(net, name, operator)
    insertion = Insertion(route, operators)
    net._subnetact_insertion = insertion  # type: ignore[assignment]
    return insertion


def _operator_for(module: nn.Module, route: Route) -> Operator | None:
    if isinstance(module, BlockSequence):
        return LayerSelect(module.items(), route)
    for kind, operator in _OPERATORS:
        if isinstance(module, kind):
            return operator(module, route)
    return None


def _replace(net: nn.Module, name: str, operator: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    owner = net.get_submodule(parent)
    if isinstance(owner, nn.ModuleDict):
        owner[child] = operator
    else:
        setattr(owner, child, operator)


def _check_covered(net: nn.Module) -> None:
    covered = tuple(kind for kind, _ in _OPERATORS)
    for name, module in net.named_modules():
        own = [n for n, _ in module.named_parameters(recurse=False)]
        if own and not isinstance(module, covered):
            kinds = ", ".join(kind.__name__ for kind in covered)
            raise ValueError(
                f"module {name or '(root)'} ({type(module).__name__}) holds {', '.join(own)}, "
                f"which no operator slices; supported are {kinds}"
            )
