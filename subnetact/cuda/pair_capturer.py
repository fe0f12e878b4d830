"""`PairCapturer`: captures (subnet, padded batch) pairs of a supernet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_graphs import Captured, CaptureError, GraphKey
from subnetact.cuda.cuda_supernet import CudaBinding, CudaSupernet


class PairCapturer:
    """See `Capturer`; called with the device held. `run` is what is captured, in place."""

    def __init__(
        self,
        net: CudaSupernet,
        accelerator: Accelerator,
        run: Callable[[CudaBinding, str, int], None],
    ):
        self._net = net
        self._accelerator = accelerator
        self._run = run

    def measure(self, key: GraphKey) -> int:
        """See `Capturer`."""
        return self._accelerator.peak_bytes(self._call(key, _PinnedBinding(self._binding(key))))

    def capture(self, key: GraphKey) -> Captured:
        """See `Capturer`. Raises CaptureError where slices are streamed."""
        pin = _PinnedBinding(self._binding(key))
        graph, num_bytes = self._accelerator.capture(self._call(key, pin))
        return Captured(graph, pin, num_bytes)

    def renew_pool(self) -> None:
        """See `Capturer`."""
        self._accelerator.renew_pool()

    def drop(self) -> None:
        """See `Capturer`."""
        self._accelerator.drop_captures()

    def _binding(self, key: GraphKey) -> CudaBinding:
        binding = self._net.actuate(key.subnet_id)
        if binding.num_streamed:
            raise CaptureError("streamed: not all of its slices are resident")
        return binding

    def _call(self, key: GraphKey, pin: _PinnedBinding) -> Callable[[], None]:
        return lambda: self._run(pin.binding, key.subnet_id, key.batch_size)


class _PinnedBinding:
    """What a graph reads: a binding, whose calls hold slices and norms."""

    def __init__(self, binding: CudaBinding):
        self._binding: CudaBinding | None = binding

    @property
    def binding(self) -> CudaBinding:
        """The pinned binding; a released pin has none, and its graph may not run."""
        assert self._binding is not None, "a retired graph is not replayed"
        return self._binding

    def reads(self) -> Any:
        """See `Pin`: the weights of the resident slices."""
        return self.binding.weights

    def release(self) -> None:
        """See `Pin`."""
        self._binding = None
