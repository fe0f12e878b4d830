"""`CudaAccelerator`: streams, events, page-locked memory and graphs of one CUDA device.

All device memory is allocated on the compute stream and freed there, so that the allocator's reuse
follows the order of the launches; the copy stream only fills buffers that live as long as this
object. All graphs are captured on the one compute stream into one pool, without which they would
not share memory, and none is destroyed while others live: its siblings may use the same workspace
(pytorch issue 193402).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module

import torch

from subnetact.conv_geometry import ConvGeometry
from subnetact.cuda.accelerator import Mark, Replay
from subnetact.cuda.pointwise import Pointwise, fault_of, in_parts
from subnetact.device import device_name, is_out_of_memory
from subnetact.norms import Affine

_WARM_UP_RUNS = 3  # libraries choose algorithms and take workspaces in the first ones


class CudaAccelerator:
    """See `Accelerator`. Uses the current CUDA device unless `device` names another."""

    def __init__(self, device: str = "cuda"):
        """Raise ValueError when there is no such CUDA device."""
        device_name(device)
        index = torch.device(device).index
        self.device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self._compute = torch.cuda.Stream(self.device, priority=-1)  # inference goes first
        self._copy = torch.cuda.Stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._is_out_of_pinned = False
        self.why_not_fused = self._probe_fused()
        self._pointwise: Pointwise = in_parts
        self.why_in_parts = self._probe_pointwise()

    def convolve_fused(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        other: torch.Tensor | None,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        """See `Accelerator`."""
        g = geometry
        shape = (list(g.stride), list(g.padding), list(g.dilation), g.groups)
        if other is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *shape)
        return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *shape)

    def pointwise(
        self, y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
    ) -> torch.Tensor:
        """See `Accelerator`."""
        return self._pointwise(y, norm, other, act)

    def time_s(self, call: Callable[[], object]) -> float:
        """See `Accelerator`."""
        with self.computing():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Accelerator`."""
        try:
            return torch.zeros(shape, dtype=dtype, pin_memory=True)
        except RuntimeError as error:  # torch has no narrower one for cudaHostAlloc
            if not self._is_out_of_pinned:
                self._is_out_of_pinned = True
                warnings.warn(
                    f"no page-locked memory for {shape} {dtype}: {error}; copies from it and "
                    "others that find none are slower, with the same results",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return torch.zeros(shape, dtype=dtype)

    def computing(self) -> AbstractContextManager[object]:
        """See `Accelerator`."""
        return torch.cuda.stream(self._compute)

    @contextmanager
    def searching(self) -> Iterator[None]:
        """See `Accelerator`: cuDNN times its algorithms; those found serve all later calls."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def copying(self) -> AbstractContextManager[object]:
        """See `Accelerator`."""
        return torch.cuda.stream(self._copy)

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """See `Accelerator`."""
        into.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """See `Accelerator`."""
        return _Event()

    def after(self, mark: Mark) -> None:
        """See `Accelerator`."""
        assert isinstance(mark, _Event), "a mark of this device"
        torch.cuda.current_stream(self.device).wait_event(mark.event)

    def peak_bytes(self, call: Callable[[], None]) -> int:
        """See `Accelerator`."""
        with self.computing():
            for _ in range(_WARM_UP_RUNS):
                call()
            self._compute.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            self._compute.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        """See `Accelerator`."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what is free in the allocator must not hide what a graph takes
        before = torch.cuda.mem_get_info(self.device)[0]
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)  # first: a capture that fails may not be destroyed either
        with (
            self.computing(),
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._compute,
                capture_error_mode="thread_local",  # other threads may use the device meanwhile
            ),
        ):
            call()
        graph.replay()  # its upload and first launch must not fall on a query
        torch.cuda.synchronize(self.device)
        grown = max(0, before - torch.cuda.mem_get_info(self.device)[0])
        self._take_back(call)
        return graph, grown

    def _take_back(self, call: Callable[[], None]) -> None:
        """Run eagerly: else the next such batch would wait for memory that was given back before.

        What the graph left may be too little for that. It is a graph all the same, and whether a
        batch finds room is for the batch to see.
        """
        try:
            with self.computing():
                call()
                self._compute.synchronize()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise

    def renew_pool(self) -> None:
        """See `Accelerator`.

        Where the end of a capture fails, the allocator goes on "recording" into its pool, and each
        later capture there is refused (`beginAllocateToPool: already recording`).
        """
        end_recording = getattr(torch._C, "_cuda_endAllocateToPool", None)  # private: may go
        if end_recording is not None:
            with suppress(RuntimeError):  # it had ended
                end_recording(self.device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()

    def drop_captures(self) -> None:
        """See `Accelerator`; all of them at once, when the device is idle."""
        torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def trim(self) -> None:
        """See `Accelerator`."""
        torch.cuda.empty_cache()

    @property
    def has_fused_convolutions(self) -> bool:
        """See `Accelerator`."""
        return not self.why_not_fused

    def _probe_pointwise(self) -> str:
        """Compile our kernel and hold it to its twin; say why it can't be used, or ""."""
        try:
            joined = import_module("subnetact.cuda.pointwise_kernel").joined  # needs Triton
            with self.computing(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of defaults that its next version changes
                fault = fault_of(joined, self.device)
        except Exception as error:  # any: a compiler's
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if not fault:
            self._pointwise = joined
        return fault

    def _probe_fused(self) -> str:
        """Try the fused convolution in the layout that it gets; say why it can't be used, or "".

        It is ATen's but not public: it may be gone, refuse, or read what nobody wrote, so memory
        that was filled with NaN is handed out to it.
        """
        if not hasattr(torch, "cudnn_convolution_add_relu"):
            return "this torch has no fused convolution"
        try:
            x = torch.ones(1, 8, 4, 4, device=self.device, dtype=torch.bfloat16)
            w = torch.ones(8, 8, 1, 1, device=self.device, dtype=torch.bfloat16)
            x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
            bias = torch.ones(8, device=self.device, dtype=torch.bfloat16)
            for _ in range(8):
                torch.full_like(x, torch.nan)
            y = torch.cudnn_convolution_relu(x, w, bias, [1, 1], [0, 0], [1, 1], 1)
            is_right = bool((y == 9).all())
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return "" if is_right else "the fused convolution gives a wrong result"


class _Event:
    """A mark: an event recorded on the stream that is current."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event()
        self.event.record()

    def wait(self) -> None:
        self.event.synchronize()
