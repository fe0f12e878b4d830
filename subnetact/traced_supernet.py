"""`TracedSupernet`: what supernets have in common that run traced programs on resident slices.

A subnet's program is traced when it is first run and kept for the last `max_programs` subnets; its
binding, one call per site chosen for one state of the cache, is kept until that state changes.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

import torch

from subnetact.cache import SliceKey, SubgraphCache
from subnetact.norms import FoldedNorms
from subnetact.program import Program
from subnetact.subnet_registry import SubnetRegistry
from supernet.arch import Arch
from supernet.definition import SupernetDefinition


class VersionedBinding(Protocol):
    """What runs a subnet, chosen for one version of the cache."""

    version: int


B = TypeVar("B", bound=VersionedBinding)


class TracedSupernet(ABC, Generic[B]):
    """Registered subnets, their programs and bindings."""

    def __init__(
        self,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        norms: FoldedNorms,
        cache: SubgraphCache,
        *,
        max_programs: int,
    ):
        """Serve `state`, the supernet's tensors. Raises ValueError for no program."""
        if max_programs < 1:
            raise ValueError(f"max_programs is {max_programs}, allowed 1 or more")
        self.cache = cache
        self.norms = norms
        self._definition = definition
        self._state = state
        self._max_programs = max_programs
        self._archs = SubnetRegistry[Arch]()
        self._programs: dict[str, Program] = {}
        self._bindings: dict[str, B] = {}
        self._lock = threading.Lock()
        cache.on_eviction(self._bindings.clear)

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Registered subnets, in order of registration."""
        return tuple(self._archs)

    def arch(self, subnet_id: str) -> Arch:
        """Return a registered subnet's arch. Raises KeyError naming the registered ids."""
        return self._archs[subnet_id]

    def actuate(self, subnet_id: str) -> B:
        """Return what runs a subnet now; one look-up unless residency changed or it is new."""
        binding = self._bindings.get(subnet_id)
        if binding is None or binding.version != self.cache.version:
            binding = self._bind(subnet_id)
            with self._lock:
                self._bindings[subnet_id] = binding
                if self.cache.version != binding.version:  # evicted meanwhile: keep no slice alive
                    self._bindings.pop(subnet_id, None)
        return binding

    def evict_others(self, keep: Iterable[SliceKey]) -> int:
        """Evict what is not in `keep`; return how many slices."""
        return self.cache.evict(self.cache.resident - frozenset(keep))

    @abstractmethod
    def _bind(self, subnet_id: str) -> B:
        """Choose the calls of a subnet for what is resident now."""

    @abstractmethod
    def _trace(self, arch: Arch) -> Program:
        """Trace a subnet's program."""

    def _program(self, subnet_id: str) -> Program:
        """Return a subnet's program; the least recently used ones are forgotten."""
        arch = self.arch(subnet_id)
        with self._lock:
            program = self._programs.pop(subnet_id, None) or self._trace(arch)
            self._programs[subnet_id] = program  # youngest last
            while len(self._programs) > self._max_programs:
                oldest = next(iter(self._programs))
                del self._programs[oldest]
                self._bindings.pop(oldest, None)
        return program
