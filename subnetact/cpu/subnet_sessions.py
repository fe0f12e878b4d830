"""`SubnetSessions`: makes sessions of a checkpoint's subnets in any precision, from cache or anew.

Making one: the template of its topology (recorded once per process), its initialisers cut out of
the supernet or its low-bit weights, rounded where it is int8, optimised by onnxruntime. The
optimised model is kept in a `GraphCache` under everything that it depends on: the checkpoint, this
code's version, the library's, the processor, and the ranges.

Where OpenVINO is installed, `open` takes it for the subnets that it was found to run faster, and
`choose` finds that out: both engines' sessions are timed in turn. What was found is kept in the
same cache, the compiled model or, where onnxruntime won, an empty file, so that a start measures
nothing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from subnetact.cpu.activation_ranges import Ranges, ranges_to_json
from subnetact.cpu.compiled_session import CompiledSession, is_faster
from subnetact.cpu.graph_cache import GraphCache
from subnetact.cpu.graph_template import GraphTemplate, topology, write_template
from subnetact.cpu.openvino_session import OpenVinoSession, openvino_version
from subnetact.cpu.ort_session import OrtSession, onnxruntime, return_freed_memory
from subnetact.cpu.quantise import quantise
from subnetact.cpu.subnet_graph import subnet_graph
from subnetact.device import cpu_flags, device_name
from subnetact.number_format import best_format
from supernet.checkpoint import Checkpoint
from supernet.served_form import ServedForm

_GRAPH_VERSION = 1  # of what is written here: raise it when a graph of the same subnet changes


class SubnetSessions:
    """Opens sessions of one checkpoint's subnets. Safe to call from several threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int = 1,
        ranges: Mapping[str, Ranges] | None = None,
        cache: GraphCache | None = None,
    ):
        """`ranges` are the activations' by subnet id, which int8 needs; without `cache`, or a
        checkpoint that was never saved, every start makes its graphs anew.

        Raises ValueError for fewer threads than one, OrtMissingError without onnxruntime.
        """
        if threads < 1:
            raise ValueError(f"threads is {threads}, allowed 1 or more")
        self._checkpoint = checkpoint
        self._threads = threads
        self._ranges = ranges or {}
        self._cache = cache if checkpoint.fingerprint else None
        self._format = best_format()
        self._templates: dict[str, GraphTemplate] = {}
        self._lock = threading.Lock()
        self._common = json.dumps(
            [
                checkpoint.fingerprint,
                checkpoint.definition.to_json(),
                checkpoint.input.to_json(),
                _GRAPH_VERSION,
                [onnx.__version__, onnxruntime().__version__],
                [device_name("cpu"), sorted(cpu_flags()), self._format],
            ]
        )

    def open(self, form: ServedForm) -> CompiledSession:
        """Return a session of a served subnet in a precision.

        Raises CheckpointError for an unknown subnet, ValueError for int8 without ranges,
        GraphError where the family uses an operator that no rule writes.
        """
        session = self._chosen(form) or self._by_onnxruntime(form)
        return_freed_memory()
        return session

    def choose(self, form: ServedForm, batches: Sequence[np.ndarray]) -> CompiledSession:
        """Return what runs these batches faster here, and keep that for `open`.

        `batches` are as the graph takes them. Without OpenVINO, a cache, or its understanding of
        the graph it is onnxruntime. Raises as `open`.
        """
        ours = self._by_onnxruntime(form)
        other = self._by_openvino(form)
        if other is None:
            return ours
        wins = is_faster(other, ours, batches)
        if self._cache is not None:
            self._cache.forget(self._openvino_key(form))
            self._cache.keep(self._openvino_key(form), other.save if wins else Path.touch)
        return other if wins else ours

    def graph(self, form: ServedForm) -> onnx.ModelProto:
        """Return the subnet's model as it is before onnxruntime optimises it; raises as `open`."""
        subnet = self._checkpoint.subnet(form.subnet_id)
        state, statistics = self._checkpoint.tensors_of(form)
        model = subnet_graph(
            self._template(form.subnet_id),
            self._checkpoint.definition,
            subnet.arch,
            state,
            statistics,
        )
        if form.precision != "int8":
            return model
        return quantise(model, self._ranges_of(form), self._format)

    def _ranges_of(self, form: ServedForm) -> Ranges:
        if form.subnet_id not in self._ranges:
            raise ValueError(
                f"{form.form_id}: int8 needs the ranges of its activations, and none were measured"
            )
        return self._ranges[form.subnet_id]

    def _template(self, subnet_id: str) -> GraphTemplate:
        arch = self._checkpoint.subnet(subnet_id).arch
        name = topology(arch)
        with self._lock:  # recording is not made for several threads at once
            if name not in self._templates:
                self._templates[name] = write_template(
                    self._checkpoint.definition, self._checkpoint.input, arch
                )
            return self._templates[name]

    def _chosen(self, form: ServedForm) -> CompiledSession | None:
        """Return OpenVINO's session where it was found to be faster."""
        if self._cache is None or openvino_version() is None:
            return None
        path = self._cache.find(self._openvino_key(form))
        if path is None or path.stat().st_size == 0:
            return None
        try:
            return OpenVinoSession(path, threads=self._threads, compiled=True)
        except ValueError:
            path.unlink(missing_ok=True)
            return None

    def _by_openvino(self, form: ServedForm) -> OpenVinoSession | None:
        if openvino_version() is None:
            return None
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.onnx"
            onnx.save(self.graph(form), plain)
            try:
                return OpenVinoSession(plain, threads=self._threads)
            except ValueError:  # an operator that it does not have
                return None

    def _openvino_key(self, form: ServedForm) -> str:
        return f"{self._key(form)}-openvino-{openvino_version()}-{self._threads}"

    def _by_onnxruntime(self, form: ServedForm) -> OrtSession:
        return self._from_cache(form) or self._made(form)

    def _from_cache(self, form: ServedForm) -> OrtSession | None:
        path = self._cache.find(self._key(form)) if self._cache is not None else None
        if path is None:
            return None
        try:
            return OrtSession(path, threads=self._threads, optimised=True)
        except ValueError:  # whole, yet not what this library reads: make it again
            path.unlink(missing_ok=True)
            return None

    def _made(self, form: ServedForm) -> OrtSession:
        model = self.graph(form)
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.onnx"
            onnx.save(model, plain)
            del model
            if self._cache is None:
                return OrtSession(plain, threads=self._threads)
            made: list[OrtSession] = []

            def write(path: Path) -> None:
                made.append(OrtSession(plain, threads=self._threads, save_optimised=path))

            self._cache.keep(self._key(form), write)
            return made[0]

    def _key(self, form: ServedForm) -> str:
        own = [form, self._common]
        if form.precision == "int8":
            own.append(json.dumps(ranges_to_json(self._ranges_of(form))))
        digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:24]
        return f"{self._checkpoint.definition.family_name}.{digest}"
