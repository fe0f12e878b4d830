"""`GraphExecutor`: runs batches on a CPU, every served subnet a whole graph of onnxruntime's.

One call per batch, outside the interpreter's lock. The plain twin is `EagerExecutor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from subnetact.cpu.activation_ranges import Ranges
from subnetact.cpu.graph_cache import GraphCache
from subnetact.cpu.subnet_sessions import SubnetSessions
from subnetact.executor import check_inputs
from subnetact.served_form import ServedForm
from subnetact.subnet_registry import SubnetRegistry
from supernet.checkpoint import Checkpoint


class GraphExecutor:
    """An `Executor` on a CPU whose subnets are resident graphs, in float32 or int8."""

    device = "cpu"
    dtype = "float32"
    packing = "graph"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = 1,
        max_batch_size: int = 16,
        form_ids: Iterable[str] | None = None,
        ranges: Mapping[str, Ranges] | None = None,
        cache_folder: Path | None = None,
    ):
        """Open a session per form (default: every served subnet in float32).

        `form_ids` are `ServedForm` ids; those that end in `-i8` need `ranges` by subnet id.
        Graphs are kept in `cache_folder`, where one is given. Raises what `SubnetSessions.open`
        raises, and ValueError for a number below one.
        """
        for name, value in (("threads", threads), ("max_batch_size", max_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        self.threads = threads
        self.max_batch_size = max_batch_size
        self.input_shape = checkpoint.input_shape
        self.num_classes = checkpoint.num_classes
        self._is_image = checkpoint.input.kind == "image"
        wanted = checkpoint.subnet_ids if form_ids is None else tuple(form_ids)
        sessions = SubnetSessions(
            checkpoint,
            threads=threads or 1,
            ranges=ranges,
            cache=GraphCache(cache_folder) if cache_folder is not None else None,
        )
        forms = [ServedForm.parse(form_id) for form_id in wanted]
        precisions = sorted({form.precision for form in forms})
        self.details = f"whole graphs, {', '.join(precisions)}"
        self._resolutions = {
            form.form_id: checkpoint.subnet(form.subnet_id).arch.resolution for form in forms
        }
        self._sessions = SubnetRegistry({form.form_id: sessions.open(form) for form in forms})

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the forms that can be run."""
        return tuple(self._sessions)

    def run(self, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
        """Run (B, C, H, W) uint8 samples on a form, return (B, num_classes) float32 logits.

        Raises KeyError for an unknown form, ValueError for inputs of another shape or type.
        """
        check_inputs(inputs, self.input_shape)
        samples = inputs
        if not self._is_image:
            ids = inputs.reshape(len(inputs), -1)[:, : self._resolutions[subnet_id]]
            samples = ids.astype(np.int64)
        return self._sessions[subnet_id].run(np.ascontiguousarray(samples))

    def warm_up(self) -> None:
        """Run every form at the smallest and the largest batch size."""
        for batch_size in (self.max_batch_size, 1):
            inputs = np.zeros((batch_size, *self.input_shape), dtype=np.uint8)
            for form_id in self.subnet_ids:
                self.run(form_id, inputs)

    def counts(self) -> Mapping[str, int]:
        """See `Executor`: how many graphs are resident."""
        return {"resident_graphs": len(self._sessions)}

    def close(self) -> None:
        """Let go of the graphs."""
        self._sessions.clear()
