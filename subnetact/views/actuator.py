"""`Actuator`: makes a subnet of a resident supernet current. O(1), copies nothing, moves nothing.

Registering a subnet makes its views once (microseconds per layer); after that, actuation is one
look-up and one assignment. Register before serving: the views point into the weights as they lie
on the device now, so move the network first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from subnetact.subnet_registry import SubnetRegistry
from subnetact.views.insert import Insertion, insert_operators
from subnetact.views.operators import SubnetNorm
from supernet.arch import Arch
from supernet.definition import SupernetDefinition


class Actuator:
    """The registered subnets of one supernet, and the one that is current in each thread."""

    def __init__(self, net: nn.Module, definition: SupernetDefinition):
        """Insert the operators into `net` (in place, idempotent)."""
        self._definition = definition
        self.insertion: Insertion = insert_operators(net.eval())
        self._index = SubnetRegistry[int]()
        self._archs: dict[str, Arch] = {}

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the registered subnets, in order of registration."""
        return tuple(self._index)

    @property
    def current(self) -> str:
        """Id of the subnet that is current in this thread."""
        return self.subnet_ids[self.insertion.route.index]

    def register(self, arch: Arch, norm_statistics: Mapping[str, torch.Tensor]) -> str:
        """Make a subnet servable and return its id; a known id is left as it is.

        Raises ValueError when `arch` is outside the space, or statistics are missing.
        """
        subnet_id = arch.subnet_id
        if subnet_id in self._index:
            return subnet_id
        self._definition.space.validate(arch)
        shapes = self._definition.parameter_shapes(arch)
        self._check_statistics(arch, norm_statistics)
        for name, operator in self.insertion.operators.items():
            if isinstance(operator, SubnetNorm):
                operator.register(f"{name}.", shapes, norm_statistics)
            else:
                operator.register(f"{name}.", shapes)
        self._index[subnet_id] = len(self._index)
        self._archs[subnet_id] = arch
        return subnet_id

    def actuate(self, subnet_id: str) -> Arch:
        """Make a registered subnet current in this thread and return its arch.

        Raises KeyError naming the registered ids.
        """
        self.insertion.route.index = self._index[subnet_id]
        return self._archs[subnet_id]

    def _check_statistics(self, arch: Arch, statistics: Mapping[str, torch.Tensor]) -> None:
        expected = {
            name: shape
            for name, shape in self._definition.buffer_shapes(arch).items()
            if name.endswith(("running_mean", "running_var"))
        }
        wrong = [n for n, s in expected.items() if n not in statistics or statistics[n].shape != s]
        if wrong:
            raise ValueError(
                f"norm statistics of {arch.subnet_id} lack or misshape {', '.join(wrong)}; "
                "calibrate this subnet first"
            )
