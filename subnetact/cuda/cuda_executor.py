"""`CudaExecutor`: runs batches on a CUDA device: graphs where they are captured, else eagerly.

A batch goes through a room of the `InputRing` to the device as it came and is normalised there.
`warm_up` captures one graph per (subnet, padded batch); or, once a profile said what batches take
with and without (`follow`), those that are hot are captured between batches, when whoever has the
device runs the errand (`HotGraphs`). The request path never captures. The host waits in one place,
`result`, for the event behind the batch's output. Who calls `launch` for the next batch before
`result` of the present one, as the server does under load, has the device work through them without
a gap.

The plain twin of a graph is the eager run, that of both the extracted module; all give the same
results, up to rounding in 16 bit. When memory runs out, graphs and then slices are given up and the
batch runs streamed, with one warning and a count (`MemoryRelief`).
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch

from slackfit.profile import LatencyProfile, ProfileError
from subnetact.cache import SubgraphCache
from subnetact.cuda.accelerator import Accelerator, Mark
from subnetact.cuda.cuda_graphs import OUT_OF_MEMORY, CudaGraphs, GraphKey, Lease
from subnetact.cuda.cuda_slice import CudaSlice
from subnetact.cuda.cuda_supernet import CudaBinding, CudaSupernet
from subnetact.cuda.hot_graphs import HotGraphs
from subnetact.cuda.input_ring import BatchRoom, InputRing
from subnetact.cuda.memory_relief import MemoryRelief
from subnetact.cuda.pair_capturer import PairCapturer
from subnetact.device import is_out_of_memory
from subnetact.executor import StagingExecutor, check_batch
from subnetact.ieee_float32 import ieee_float32
from subnetact.norms import FoldedNorms
from supernet.checkpoint import Checkpoint

_FASTER_EAGERLY = "faster than on the graph of a larger batch"
_TAKE_BACK_S = 1.0  # how long a probe of an idle device may take back what was given up


class CudaExecutor(StagingExecutor):
    """An `Executor` on one accelerator. Thread-safe; batches are launched one at a time."""

    threads = None
    num_under_way = 2  # the rooms of its ring: one batch is copied while the other is computed
    is_padded = True

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
        norm_dtype: torch.dtype | None = None,
    ):
        """Register the subnets (default: all served ones) and load what `budget_bytes` allows.

        `budget_bytes` limits the weights on the device, all of them; what can't be streamed counts
        first, with one warning where it alone is more. `batch_sizes` are those to capture (default
        the powers of two up to `max_batch_size`, and that), `graph_budget_bytes` what their graphs
        may hold (0: no graphs). `norm_dtype` is what norms beside slices are kept in, float32 or
        float16; in `one_copy` of 16 bit the latter, finer than what they scale, is the default.
        Raises CheckpointError for a subnet that the checkpoint does not serve, ValueError for a
        packing, dtype or number that is out of range.
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
        if norm_dtype is None:
            is_half = packing == "one_copy" and dtype != torch.float32
            norm_dtype = torch.float16 if is_half else torch.float32
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"budget_bytes is {budget_bytes}, allowed 0 or more, or None")
        self.net = CudaSupernet(
            checkpoint.definition,
            checkpoint.state,
            FoldedNorms(checkpoint.definition, checkpoint.state, norm_dtype),
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
        capturer = PairCapturer(self.net, accelerator, self._run_static)
        self.graphs = CudaGraphs(capturer, graph_budget_bytes)
        self._hot: HotGraphs | None = None
        self._without_graphs = False
        self.net.cache.on_eviction(lambda: self.graphs.retire(self.net.is_stale))
        self._relief = MemoryRelief(self.net, self.graphs, accelerator)
        self._take_buffers(checkpoint)
        for subnet_id in wanted:
            self._relief.load(self.net.slices(subnet_id))

    @property
    def background(self) -> HotGraphs | None:
        """Captures what is hot between batches, once a profile is followed."""
        return self._hot

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can be run."""
        return self.net.subnet_ids

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> CudaLaunched:
        """Start a batch and return without waiting for it; see `Executor` for what is raised.

        Two batches may be under way; a third waits until a result was taken.
        """
        launched = self._launch(subnet_id, slots)
        if self._hot is not None:  # what nobody asked for, in `run`, makes nothing hot
            self._hot.note(subnet_id, self._padded(launched.num_samples))
        return launched

    def result(self, launched: CudaLaunched) -> np.ndarray:
        """Wait for the output's event, the only place where the host waits for the device."""
        try:
            launched.mark.wait()
            return launched.room.host_output[: launched.num_samples].numpy().copy()
        finally:
            self.ring.release(launched.room)

    @torch.inference_mode()
    def run(self, subnet_id: str, samples: np.ndarray) -> np.ndarray:
        """See `StagingExecutor`; for a device that is idle.

        What was given up when memory ran out is taken back before, as far as a second goes.
        """
        if not self._relief.is_complete:
            with self._launching:
                self._relief.take_back(_TAKE_BACK_S)
        return self.result(self._launch(subnet_id, [self.stage(samples)]))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every subnet at every padded size, and capture what is not captured yet.

        Where graphs follow what is launched, two are captured and the rest is run without. By the
        thread that will serve: libraries keep the algorithms that they found per thread.
        """
        keys = [GraphKey(i, size) for i in self.subnet_ids for size in self.batch_sizes]
        with self._accelerator.searching(), self.net.fused_sites.choosing():
            if self._hot is not None:
                self._hot.begin(keys)
            elif self.graphs.budget_bytes != 0:
                with self._launching:
                    self.graphs.capture(keys)
                    self._relief.note_refused_graphs()
            with nullcontext() if self._hot is None else self.without_graphs():
                for subnet_id in self.subnet_ids:
                    for size in self._padded_sizes:
                        self.result(self._launch(subnet_id, [self.sample.zeros(size)]))

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        """Run batches eagerly within this context, whatever is captured."""
        self._without_graphs = True
        try:
            yield
        finally:
            self._without_graphs = False

    def follow(
        self, profile: LatencyProfile, *, clock: Callable[[], float] = time.monotonic
    ) -> bool:
        """Have graphs of what is launched lately from now on, see `HotGraphs`.

        `profile` says what batches take with a graph and without. Returns whether it does, and
        there may be graphs; if not all are captured by `warm_up`, within their budget. What is
        captured already stays.
        """
        if self.graphs.budget_bytes == 0:
            return False
        try:
            hot = HotGraphs(profile, self.graphs, holding=self._launching, clock=clock)
        except ProfileError:
            return False
        self._relief.leave_graphs()
        self._hot = hot
        return True

    def make_resident(self, slices: Iterable[CudaSlice]) -> int:
        """Evict everything else and load these, in order; return how many are resident.

        Graphs that read what was evicted are retired, and none is captured: see `warm_up`.
        """
        wanted = tuple(slices)
        with self._launching:
            self._relief.forget_slices()
            self.net.evict_others(s.key for s in wanted)
            return self._relief.load(wanted)

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
            "graphs_missing": 0 if self._hot is None else self._hot.num_missing,
            "graph_bytes": graphs.held_bytes,
            "graph_replays": graphs.replays,
            "eager_batches": sum(graphs.fallbacks.values()),
            "fused_sites": self.net.fused_sites.num_fused,
            "fusable_sites": self.net.fused_sites.num_tried,
            **cache,
            "fixed_bytes": self.net.fixed_bytes,
            "host_slice_bytes": self.net.host_bytes,
            "streamed_bytes": self.net.stream.num_copied_bytes,
            "out_of_memory": self._out_of_memory
            + cache["out_of_memory"]
            + sum(reason == OUT_OF_MEMORY for reason in graphs.refusals.values()),
        }

    @property
    def details(self) -> str:
        """What was captured and fused, for a profile; a site counts once per batch size."""
        status, sites = self.graphs.status, self.net.fused_sites
        fused = f"fused: {sites.num_fused} of {sites.num_tried} sites"
        if not self._accelerator.has_fused_convolutions:
            fused = f"none fused: {self._accelerator.why_not_fused}"
        return f"{status.live} CUDA graphs, {len(status.refusals)} pairs eager; {fused}"

    # --- launching, with the device held ---------------------------------------------------------

    @torch.inference_mode()
    def _launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> CudaLaunched:
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

    def _padded(self, num_samples: int) -> int:
        return next(size for size in self._padded_sizes if size >= num_samples)

    def _enqueue(self, subnet_id: str, num_samples: int, room: BatchRoom) -> tuple[Mark, str]:
        accelerator = self._accelerator
        padded = self._padded(num_samples)
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
        lease = self._lease(subnet_id, len(samples))
        if lease is None:
            return self._eager_with_room(subnet_id, samples), "eager"
        with lease:
            self._static_input[: len(samples)].copy_(samples)
            lease.graph.replay()
        return self._static_output[: len(samples)], "graph"

    def _lease(self, subnet_id: str, padded: int) -> Lease | None:
        if self._without_graphs:
            return None
        size: int | None = padded
        if self._hot is not None:
            size = self._hot.graph_size(subnet_id, padded)
            if size is None and self.graphs.ladders.get(subnet_id, (0,))[-1] >= padded:
                self.graphs.count_eager(_FASTER_EAGERLY)
                return None
        return self.graphs.lease(subnet_id, size or padded)

    def _eager_with_room(self, subnet_id: str, samples: torch.Tensor) -> torch.Tensor:
        """Run eagerly; where memory runs out, without graphs, at last with nothing resident."""
        for give_up in self._relief.steps(subnet_id):
            try:
                return self._eager(self.net.actuate(subnet_id), subnet_id, samples)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._note_out_of_memory(subnet_id, len(samples), error)
            # Outside the handler: the error's frames hold the tensors that are in the way.
            give_up()
        return self._eager(self.net.actuate(subnet_id), subnet_id, samples)

    def _note_out_of_memory(self, subnet_id: str, num_samples: int, error: Exception) -> None:
        self._out_of_memory += 1
        if self._hot is not None:
            self._hot.pause()
        if self._out_of_memory == 1:
            warnings.warn(
                f"the device ran out of memory for {subnet_id} at batch {num_samples} "
                f"({str(error).splitlines()[0]}): graphs, then resident slices are given up where "
                "that helps, and taken back when the device is idle; slower, with the same results",
                RuntimeWarning,
                stacklevel=4,
            )

    def _eager(self, binding: CudaBinding, subnet_id: str, samples: torch.Tensor) -> torch.Tensor:
        """Normalise samples (B, ...) and run; (B, num_classes) logits, float32."""
        x = self._input.normalise(samples, self.net.arch(subnet_id).resolution, self._constants)
        if x.is_floating_point():
            x = x.to(self.net.dtype, memory_format=torch.channels_last)
        with ieee_float32():
            return self.net.run(binding, x).float()

    def _run_static(self, binding: CudaBinding, subnet_id: str, size: int) -> None:
        """What a graph does: from the one input of all of them to their one output."""
        logits = self._eager(binding, subnet_id, self._static_input[:size])
        self._static_output[:size].copy_(logits)

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
