"""What tensors a subnet has, by name and shape, in microseconds and without weights.

The description comes from building the ordinary module on the meta device, so it cannot disagree
with what runs. A whole network costs milliseconds to build, but a space has few distinct blocks:
classes derived from `Block` are built once per set of constructor arguments while describing, and
their shapes are copied from then on. Outside `describe` a `Block` is a plain `nn.Module`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

Shape = tuple[int, ...]

_MAX_BLOCKS = 16_384
_describing: ContextVar[bool] = ContextVar("describing", default=False)


class Description(NamedTuple):
    """Shapes by name of a network's parameters and buffers."""

    parameters: Mapping[str, Shape]
    buffers: Mapping[str, Shape]


class _OncePerDescription(type(nn.Module)):
    """While describing, calling the class twice with equal arguments builds it once."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not _describing.get():
            return super().__call__(*args, **kwargs)
        return _built_once(cls, args, tuple(kwargs.items()))


class Block(nn.Module, metaclass=_OncePerDescription):
    """A module whose tensors are determined by its (hashable) constructor arguments alone."""

    def named_shapes(self, prefix: str) -> tuple[dict[str, Shape], dict[str, Shape]]:
        """Parameters and buffers as they are called below `prefix`; kept per prefix."""
        kept: dict[str, tuple[dict[str, Shape], dict[str, Shape]]]
        kept = vars(self).setdefault("_named_shapes", {})
        if prefix not in kept:
            parameters: dict[str, Shape] = {}
            buffers: dict[str, Shape] = {}
            _collect(self, prefix, parameters, buffers)
            kept[prefix] = parameters, buffers
        return kept[prefix]


@lru_cache(maxsize=_MAX_BLOCKS)
def _built_once(cls: type[Block], args: tuple[Any, ...], kwargs: tuple[Any, ...]) -> Block:
    return type.__call__(cls, *args, **dict(kwargs))


def describe(build: Callable[[], nn.Module]) -> Description:
    """Return the names and shapes of the network that `build` makes, in its own order."""
    token = _describing.set(True)
    try:
        with torch.device("meta"):
            net = build()
    finally:
        _describing.reset(token)
    parameters: dict[str, Shape] = {}
    buffers: dict[str, Shape] = {}
    _collect(net, "", parameters, buffers)
    return Description(MappingProxyType(parameters), MappingProxyType(buffers))


def _collect(
    module: nn.Module, prefix: str, parameters: dict[str, Shape], buffers: dict[str, Shape]
) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            parameters[prefix + name] = tuple(parameter.shape)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            buffers[prefix + name] = tuple(buffer.shape)
    for name, child in module._modules.items():
        if isinstance(child, Block):
            own_parameters, own_buffers = child.named_shapes(f"{prefix}{name}.")
            parameters.update(own_parameters)
            buffers.update(own_buffers)
        elif child is not None:
            _collect(child, f"{prefix}{name}.", parameters, buffers)
