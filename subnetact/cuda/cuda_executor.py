"""`CudaExecutor`: runs batches on a CUDA device: graphs where they are captured, else eagerly.

A batch goes through a room of the `InputRing` to the device as it came and is normalised there. One
graph per (subnet, padded batch) is captured in `warm_up`, for the batch sizes it is made for; the
request path never captures. The host waits in one place, `result`, for the event behind the batch's
output. Who calls `launch` for the next batch before `result` of the present one, as the server does
under load, has the device work through them without a gap.

The plain twin of a graph is the eager run, that of both the extracted module; all give the same
results, up to rounding in 16 bit. When memory runs out the device's slices are given up and the
batch runs streamed, with one warning and a count.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from subnetact.cache import SubgraphCache
from subnetact.cuda.accelerator import Accelerator, Mark
from subnetact.cuda.cuda_graphs import Captured, CaptureError, CudaGraphs, GraphKey
from subnetact.cuda.cuda_supernet import CudaBinding, CudaSlice, CudaSupernet
from subnetact.cuda.input_ring import BatchRoom, InputRing
from subnetact.executor import StagingExecutor, check_batch
from subnetact.norms import FoldedNorms
from supernet.checkpoint import Checkpoint


class CudaExecutor(StagingExecutor):
    """An `Executor` on one accelerator. Thread-safe; batches are launched one at a time."""

    threads = None
    num_under_way = 2  # the rooms of its ring: one batch is copied while the other is computed

    def __init__(
        self,
        checkpoint: Checkpoint,
        accelerator: Accelerator,
        *,
        packing: str = "folded",
        dtype: torch.dtype = torch.bfloat16,
        max_batch_size: int = 16,
        batch_sizes: Iterable[int] | None = None,
        subnet_ids: Iterable[str] | None = None,
        budget_bytes: int | None = None,
        graph_budget_bytes: int | None = None,
    ):
        """Register the subnets (default: all served ones) and load what `budget_bytes` allows.

        `budget_bytes` limits the weights on the device, all of them; what can't be streamed counts
        first, with one warning where it alone is more. `batch_sizes` are those to capture (default
        the powers of two up to `max_batch_size`, and that), `graph_budget_bytes` what their graphs
        may hold (0: no graphs). Raises CheckpointError for a subnet that the checkpoint does not
        serve, ValueError for a packing, dtype or number that is out of range.
        """
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size is {max_batch_size}, allowed 1 or more")
        self.packing = packing
        self.device = str(accelerator.device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.max_batch_size = max_batch_size
        self.batch_sizes = _ladder(batch_sizes, max_batch_size)
        self._padded_sizes = tuple(dict.fromkeys((*self.batch_sizes, max_batch_size)))
        self.sample = checkpoint.sample
        self.num_classes = checkpoint.num_classes
        self._input = checkpoint.input
        self._accelerator = accelerator
        self._launching = threading.RLock()
        self._out_of_memory = 0
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        archs = [checkpoint.subnet(subnet_id).arch for subnet_id in wanted]
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"budget_bytes is {budget_bytes}, allowed 0 or more, or None")
        self.net = CudaSupernet(
            checkpoint.definition,
            checkpoint.state,
            FoldedNorms(checkpoint.definition, checkpoint.state),
            SubgraphCache(budget_bytes),
            accelerator,
            packing=packing,
            dtype=dtype,
            keep_host_slices=budget_bytes is not None,
            max_programs=max(64, len(wanted)),
        )
        for arch in archs:
            self.net.register(arch, checkpoint.norm_statistics[arch.subnet_id])
        if budget_bytes is not None:
            self._leave_room(budget_bytes)
        self.graphs = CudaGraphs(_Capturing(self), graph_budget_bytes)
        self.net.cache.on_eviction(lambda: self.graphs.retire(self.net.is_stale))
        self._take_buffers(checkpoint)
        for subnet_id in wanted:
            self.net.load(self.net.slices(subnet_id))

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can be run."""
        return self.net.subnet_ids

    @torch.inference_mode()
    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> CudaLaunched:
        """Start a batch and return without waiting for it; see `Executor` for what is raised.

        Two batches may be under way; a third waits until a result was taken.
        """
        num_samples = sum(map(len, slots))
        check_batch(num_samples, self.max_batch_size)
        self.net.arch(subnet_id)
        room = self.ring.acquire()
        try:
            self.sample.stacked(slots, into=room.host_input.numpy())
            mark, form = self._enqueue(subnet_id, num_samples, room)
        except BaseException:
            self.ring.release(room)
            raise
        return CudaLaunched(room, mark, num_samples, form)

    def result(self, launched: CudaLaunched) -> np.ndarray:
        """Wait for the output's event, the only place where the host waits for the device."""
        try:
            launched.mark.wait()
            return launched.room.host_output[: launched.num_samples].numpy().copy()
        finally:
            self.ring.release(launched.room)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every subnet at every padded size, and capture what is not captured yet.

        By the thread that will serve: libraries keep the algorithms that they found per thread.
        """
        with self._accelerator.searching():
            if self.graphs.budget_bytes != 0:
                with self._launching:
                    self.graphs.capture(
                        GraphKey(subnet_id, size)
                        for subnet_id in self.subnet_ids
                        for size in self.batch_sizes
                    )
            for subnet_id in self.subnet_ids:
                for size in self._padded_sizes:
                    self.run(subnet_id, self.sample.zeros(size))

    def make_resident(self, slices: Iterable[CudaSlice]) -> int:
        """Evict everything else and load these, in order; return how many are resident.

        Graphs that read what was evicted are retired, and none is captured: see `warm_up`.
        """
        wanted = tuple(slices)
        with self._launching:
            self.net.evict_others(s.key for s in wanted)
            return self.net.load(wanted)

    def close(self) -> None:
        """Free the graphs and what is resident; nothing may be under way."""
        with self._launching:
            self.graphs.drop()
            self.net.cache.clear()
            self._accelerator.trim()

    def counts(self) -> dict[str, int]:
        """What the device did so far, by names fit for metrics; bytes are those held now."""
        graphs, cache = self.graphs.status, self.net.cache.tally()
        return {
            "graphs_live": graphs.live,
            "graphs_retired": graphs.retired,
            "graphs_refused": len(graphs.refusals),
            "graph_bytes": graphs.held_bytes,
            "graph_replays": graphs.replays,
            "eager_batches": sum(graphs.fallbacks.values()),
            **cache,
            "fixed_bytes": self.net.fixed_bytes,
            "host_slice_bytes": self.net.host_bytes,
            "streamed_bytes": self.net.stream.num_copied_bytes,
            "out_of_memory": self._out_of_memory
            + cache["out_of_memory"]
            + sum(reason == "out of memory" for reason in graphs.refusals.values()),
        }

    @property
    def details(self) -> str:
        """What was captured, for a profile."""
        status = self.graphs.status
        return f"{status.live} CUDA graphs, {len(status.refusals)} pairs eager"

    # --- launching, with the device held ---------------------------------------------------------

    def _enqueue(self, subnet_id: str, num_samples: int, room: BatchRoom) -> tuple[Mark, str]:
        accelerator = self._accelerator
        padded = next(size for size in self._padded_sizes if size >= num_samples)
        with self._launching:
            with accelerator.copying():
                accelerator.copy(room.device_input[:num_samples], room.host_input[:num_samples])
                arrived = accelerator.mark()
            with accelerator.computing():
                accelerator.after(arrived)
                logits, form = self._compute(subnet_id, room.device_input[:padded])
                accelerator.copy(room.host_output[:num_samples], logits[:num_samples])
                return accelerator.mark(), form

    def _compute(self, subnet_id: str, samples: torch.Tensor) -> tuple[torch.Tensor, str]:
        lease = self.graphs.lease(subnet_id, len(samples))
        if lease is None:
            return self._eager_with_room(subnet_id, samples), "eager"
        with lease:
            self._static_input[: len(samples)].copy_(samples)
            lease.graph.replay()
        return self._static_output[: len(samples)], "graph"

    def _eager_with_room(self, subnet_id: str, samples: torch.Tensor) -> torch.Tensor:
        """Run eagerly; where memory runs out, again with less resident, at last with nothing."""
        own = frozenset(s.key for s in self.net.slices(subnet_id))
        for keep in (self.net.cache.resident, own, frozenset()):
            try:
                return self._eager(self.net.actuate(subnet_id), subnet_id, samples)
            except torch.OutOfMemoryError as error:
                self._note_out_of_memory(subnet_id, len(samples), error)
            # Outside the handler: the error's frames hold the tensors that are in the way.
            self.net.evict_others(keep)
            self._accelerator.trim()
        return self._eager(self.net.actuate(subnet_id), subnet_id, samples)

    def _note_out_of_memory(self, subnet_id: str, num_samples: int, error: Exception) -> None:
        self._out_of_memory += 1
        if self._out_of_memory == 1:
            warnings.warn(
                f"the device ran out of memory for {subnet_id} at batch {num_samples} "
                f"({str(error).splitlines()[0]}): resident slices are given up where that helps, "
                "and streamed, slower, with the same results",
                RuntimeWarning,
                stacklevel=4,
            )

    def _eager(self, binding: CudaBinding, subnet_id: str, samples: torch.Tensor) -> torch.Tensor:
        """Normalise samples (B, ...) and run; (B, num_classes) logits, float32."""
        x = self._input.normalise(samples, self.net.arch(subnet_id).resolution, self._constants)
        if x.is_floating_point():
            x = x.to(self.net.dtype, memory_format=torch.channels_last)
        return self.net.run(binding, x).float()

    # --- made once -------------------------------------------------------------------------------

    @torch.inference_mode()
    def _take_buffers(self, checkpoint: Checkpoint) -> None:
        size, device = self.max_batch_size, self._accelerator.device
        self.ring = InputRing(
            self._accelerator, size, self.sample, self.num_classes, num_rooms=self.num_under_way
        )
        with self._accelerator.computing():
            self._constants = checkpoint.input.constants(device)
            # One input and one output for all graphs: they never run at the same time.
            self._static_input = torch.from_numpy(self.sample.zeros(size)).to(device)
            self._static_output = torch.zeros((size, self.num_classes), device=device)

    def _leave_room(self, budget_bytes: int) -> None:
        """Take what is always on the device out of the slices' budget."""
        fixed = self.net.fixed_bytes
        self.net.cache.budget_bytes = max(0, budget_bytes - fixed)
        if fixed > budget_bytes:
            warnings.warn(
                f"{fixed} bytes of weights and staging buffers can't be streamed, the budget is "
                f"{budget_bytes}: it is exceeded by the difference, and no slice is resident",
                RuntimeWarning,
                stacklevel=3,
            )


class CudaLaunched(NamedTuple):
    """A batch under way: where its output arrives, the mark behind it, graph or eager."""

    room: BatchRoom
    mark: Mark
    num_samples: int
    form: str


class _Capturing:
    """The `Capturer` of an executor; called with the device held."""

    def __init__(self, executor: CudaExecutor):
        self._executor = executor

    def measure(self, key: GraphKey) -> int:
        return self._accelerator.peak_bytes(self._call(key, _Pinned(self._binding(key))))

    def capture(self, key: GraphKey) -> Captured:
        pin = _Pinned(self._binding(key))
        graph, num_bytes = self._accelerator.capture(self._call(key, pin))
        return Captured(graph, pin, num_bytes)

    def drop(self) -> None:
        self._accelerator.drop_captures()

    @property
    def _accelerator(self) -> Accelerator:
        return self._executor._accelerator

    def _binding(self, key: GraphKey) -> CudaBinding:
        binding = self._executor.net.actuate(key.subnet_id)
        if binding.num_streamed:
            raise CaptureError("streamed: not all of its slices are resident")
        return binding

    def _call(self, key: GraphKey, pin: _Pinned) -> Any:
        executor, size = self._executor, key.batch_size

        def call() -> None:
            samples = executor._static_input[:size]
            logits = executor._eager(pin.binding, key.subnet_id, samples)
            executor._static_output[:size].copy_(logits)

        return call


class _Pinned:
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


def _ladder(sizes: Iterable[int] | None, max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes to capture, ascending; the default is powers of two, and the last."""
    if sizes is None:
        powers = (2**n for n in range(max_batch_size.bit_length()))
        return tuple(sorted({*powers, max_batch_size}))
    ladder = tuple(sorted(set(sizes)))
    if not ladder or ladder[0] < 1 or ladder[-1] > max_batch_size:
        raise ValueError(
            f"batch sizes are {list(ladder)}, allowed 1 to max_batch_size ({max_batch_size})"
        )
    return ladder
