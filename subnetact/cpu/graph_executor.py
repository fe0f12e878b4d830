"""`GraphExecutor`: runs batches on a CPU, each served subnet a whole graph of onnxruntime's.

One call per batch, outside the interpreter's lock, in the precision that the id says: float32, int8
(`-i8`), or float32 over signed-binary weights (`-sb`).

Without a budget, or with one that has room, every subnet's session is opened at the start. With
less room, what each saves is measured first, what saves most is opened, and a `ResidencyKeeper`
changes it with the mix of subnets that is served; a subnet whose session is not resident is served
by its float twin's, else by views, which are made at the start where that can happen: they hold
the whole supernet once more. The plain twin of it all is `EagerExecutor`, which holds the views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from slackfit.residency import Savings, ValuePerByte
from subnetact.cpu.activation_ranges import ranges_from_tensors
from subnetact.cpu.compiled_session import CompiledSession
from subnetact.cpu.graph_cache import GraphCache
from subnetact.cpu.residency_keeper import ResidencyKeeper
from subnetact.cpu.session_savings import measure_session_savings
from subnetact.cpu.session_store import SessionStore
from subnetact.cpu.subnet_sessions import SubnetSessions
from subnetact.executor import HostLaunched, StagingExecutor, check_batch, warm_up
from subnetact.subnet_registry import SubnetRegistry
from supernet.checkpoint import Checkpoint
from supernet.served_form import ServedForm

_BYTES = {"fp32": 4, "int8": 1, "signed_binary": 4}  # of a weight in a session
_SAVINGS_BATCH = 1
_CHOSEN_AT = (1, 8)  # batch sizes that engines are compared at


class Views(Protocol):
    """What runs a float subnet where no session is resident: an `EagerExecutor`."""

    def run(self, subnet_id: str, samples: np.ndarray) -> np.ndarray: ...


class GraphExecutor(StagingExecutor):
    """An `Executor` on a CPU whose subnets are compiled graphs."""

    device = "cpu"
    dtype = "float32"
    packing = "graph"

    def __init__(
        self,
        checkpoint: Checkpoint,
        make_views: Callable[[], Views],
        *,
        threads: int | None = 1,
        max_batch_size: int = 16,
        subnet_ids: Iterable[str] | None = None,
        budget_bytes: int | None = None,
        cache_folder: Path | None = None,
        choose_engines: bool = False,
    ):
        """Open the sessions (default: of every form that the checkpoint serves), or what fits.

        What `make_views` returns serves what has none. Graphs are kept in `cache_folder`, where one
        is given, so that they are made once. `choose_engines` times each subnet in each engine that
        is installed; later executors go by that (`SubnetSessions.choose`). Raises CheckpointError
        for a subnet that the checkpoint does not serve, ValueError for a number that is out of
        range, OrtMissingError without onnxruntime.
        """
        for name, value in (("threads", threads), ("max_batch_size", max_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        self.threads = threads
        self.max_batch_size = max_batch_size
        self.sample = checkpoint.sample
        self.num_classes = checkpoint.num_classes
        self._views = cache(make_views)
        wanted = [form.subnet_id for form in checkpoint.forms] if subnet_ids is None else subnet_ids
        served = {subnet_id: checkpoint.subnet(subnet_id) for subnet_id in wanted}
        self._forms = SubnetRegistry({i: ServedForm.parse(i) for i in served})
        self._resolutions = {i: subnet.arch.resolution for i, subnet in served.items()}
        sessions = SubnetSessions(
            checkpoint,
            threads=threads or 1,
            ranges={i: ranges_from_tensors(t) for i, t in checkpoint.activation_ranges.items()},
            cache=None if cache_folder is None else GraphCache(cache_folder),
        )
        num_bytes = {
            i: _BYTES[subnet.precision] * _num_parameters(checkpoint, subnet.arch.subnet_id)
            for i, subnet in served.items()
        }
        self._sessions = sessions
        self.store = SessionStore(
            self._choose if choose_engines else sessions.open, num_bytes, budget_bytes
        )
        self._keeper = self._fill(budget_bytes)
        if len(self.store.resident) < len(self._forms):
            self._views()  # now, not while a batch waits

    def _fill(self, budget_bytes: int | None) -> ResidencyKeeper | None:
        """Open everything, or, where the budget has no room for it, what saves most seconds.

        Then the returned keeper follows the mix of subnets. No mix is known at the start: all
        subnets count alike.
        """
        store = self.store
        if budget_bytes is None or sum(store.num_bytes.values()) <= budget_bytes:
            for form_id in self._forms:
                store.load(form_id)
            return None
        if budget_bytes == 0:
            return None
        savings = self.measure_savings()
        mix = dict.fromkeys(self._forms, 1.0 / len(self._forms))
        chosen = savings.fill(mix, budget_bytes)
        for form_id in chosen:
            store.load(form_id)
        policy = ValuePerByte(savings, budget_bytes, resident=chosen)
        keeper = ResidencyKeeper(store, policy, savings)
        keeper.start()
        return keeper

    def measure_savings(self) -> Savings:
        """Time every session against views, at batch 1, and loading itself; see `Savings`."""
        return measure_session_savings(
            self._forms.values(),
            self.store.open_session,
            self.store.num_bytes,
            lambda form, samples: self._views().run(form.subnet_id, samples),
            self.sample.zeros(_SAVINGS_BATCH),
            self._inputs,
        )

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets, in each precision, that can be run."""
        return tuple(self._forms)

    @property
    def details(self) -> str:
        """Which precisions there are, for a profile."""
        precisions = sorted({form.precision for form in self._forms.values()})
        by_openvino = self.counts()["graphs_openvino"]
        engines = f" ({by_openvino} by OpenVINO)" if by_openvino else ""
        return f"whole graphs of onnxruntime{engines}, {' and '.join(precisions)}"

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> HostLaunched:
        """See `Executor`: run the batch and return its logits."""
        form = self._forms[subnet_id]
        samples = self.sample.stacked(slots)
        check_batch(len(samples), self.max_batch_size)
        with nullcontext() if self._keeper is None else self._keeper.batch(subnet_id):
            found = self.store.find(form)
            if found is None:
                return HostLaunched(self._views().run(form.subnet_id, samples), "views")
            logits = found.session.run(self._inputs(form, samples))
            return HostLaunched(logits, f"graph {found.form.precision}")

    def result(self, launched: HostLaunched) -> np.ndarray:
        """See `Executor`."""
        return launched.logits

    def warm_up(self) -> None:
        """Run every subnet at the largest and the smallest batch size."""
        warm_up(self)

    def counts(self) -> Mapping[str, int]:
        """See `Executor`; besides, how many sessions are resident, were refused, or stood in."""
        return self.store.counts()

    def close(self) -> None:
        """Let go of the sessions."""
        if self._keeper is not None:
            self._keeper.close()
        self.store.evict_others(())

    def _choose(self, form: ServedForm) -> CompiledSession:
        batches = [self._inputs(form, self.sample.zeros(size)) for size in _CHOSEN_AT]
        return self._sessions.choose(form, batches)

    def _inputs(self, form: ServedForm, samples: np.ndarray) -> np.ndarray:
        """Return staged samples as the graph of a form takes them."""
        if not self.sample.is_text:
            return np.ascontiguousarray(samples)
        return samples[:, : self._resolutions[form.form_id]].astype(np.int64)


def _num_parameters(checkpoint: Checkpoint, subnet_id: str) -> int:
    shapes = checkpoint.definition.parameter_shapes(checkpoint.subnet(subnet_id).arch)
    return sum(math.prod(shape) for shape in shapes.values())
