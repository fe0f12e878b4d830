"""`CudaAccelerator` without a device: what it makes of what torch answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from subnetact.cuda.cuda_accelerator import CudaAccelerator


class CountedGraph:
    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> CudaAccelerator:
    """On a device of 10 MB, of which a capture takes three."""
    free = iter((10_000_000, 7_000_000))

    def nothing(*_: Any) -> None:
        pass

    def context(*_: Any, **__: Any) -> object:
        return nullcontext()

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda _: "a device",
        "Stream": lambda *_, **__: SimpleNamespace(synchronize=nothing),
        "graph_pool_handle": lambda: (0, 1),
        "synchronize": nothing,
        "empty_cache": nothing,
        "mem_get_info": lambda _: (next(free), 10_000_000),
        "CUDAGraph": CountedGraph,
        "graph": context,
        "stream": context,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    for probe in ("_probe_fused", "_probe_pointwise"):
        monkeypatch.setattr(CudaAccelerator, probe, lambda _: "no device")
    return CudaAccelerator()


def test_a_graph_that_leaves_no_room_for_its_call_is_one_all_the_same(
    accelerator: CudaAccelerator,
) -> None:
    """After a capture the call runs once more, to take memory back; that there is none is no fault.

    Its pool is taken: as a failure it would hold that, uncounted, and replay nothing.
    """
    calls: list[int] = []

    def full_after_the_capture() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    graph, grown = accelerator.capture(full_after_the_capture)
    assert calls == [0, 1]
    assert isinstance(graph, CountedGraph)
    assert (graph.replays, grown) == (1, 3_000_000)


def test_another_fault_of_that_call_is_told(accelerator: CudaAccelerator) -> None:
    calls: list[int] = []

    def broken_after_the_capture() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        accelerator.capture(broken_after_the_capture)
