"""Insertion of the operators into a trained supernet (SuperServe, NSDI'25, algorithm 1).

Every stage of blocks becomes a LayerSelect, every convolution and linear layer a WeightSlice,
every BatchNorm a SubnetNorm; each in place, under the name it had, sharing its parameters. A
network into which they were inserted before is left as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from subnetact.operators import Conv2dSlice, LayerSelect, LinearSlice, Route, SubnetNorm
from supernet.blocks import BlockSequence

Operator = LayerSelect | Conv2dSlice | LinearSlice | SubnetNorm


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
    if isinstance(module, nn.Conv2d):
        return Conv2dSlice(module, route)
    if isinstance(module, nn.Linear):
        return LinearSlice(module, route)
    if isinstance(module, nn.BatchNorm2d):
        return SubnetNorm(module, route)
    return None


def _replace(net: nn.Module, name: str, operator: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    owner = net.get_submodule(parent)
    if isinstance(owner, nn.ModuleDict):
        owner[child] = operator
    else:
        setattr(owner, child, operator)


def _check_covered(net: nn.Module) -> None:
    covered = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    for name, module in net.named_modules():
        own = [n for n, _ in module.named_parameters(recurse=False)]
        if own and not isinstance(module, covered):
            raise ValueError(
                f"module {name or '(root)'} ({type(module).__name__}) holds {', '.join(own)}, "
                "which no operator slices; supported are Conv2d, Linear and BatchNorm2d"
            )
