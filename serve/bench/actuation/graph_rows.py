"""The graph and int8 parts of `supernet bench actuation`: ours against static exports.

Rounds are interleaved, so that what ran before is shared out. Every static engine has a second
session of the same file in every round: its ratio to the first says what the machine allows to be
seen, where a session's memory came to lie included (A/A). Ours is held against the engine whose
median is best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from serve.bench.actuation.graph_case import GraphCase
from serve.bench.actuation.rounds import medians_text, paired_ratio, rotated
from serve.bench.actuation.static_export import Call, installed_engines, static_export
from serve.bench.rows import Row, Tell, row
from subnetact.cpu.activation_ranges import activation_ranges
from subnetact.cpu.compiled_session import CompiledSession, is_faster
from subnetact.cpu.graph_template import write_template
from subnetact.cpu.openvino_session import OpenVinoSession, openvino_version
from subnetact.cpu.ort_session import OrtSession
from subnetact.cpu.quantise import quantise
from subnetact.cpu.subnet_graph import subnet_graph
from subnetact.number_format import best_format

_OURS = "ours"


def graph_rows(
    cases: Iterable[GraphCase],
    *,
    precisions: Iterable[str] = ("fp32", "int8"),
    batch_sizes: Iterable[int] = (1, 8),
    threads: Iterable[int] = (1,),
    at_least_s: float = 3.0,
    tell: Tell = print,
) -> list[Row]:
    """Measure every case; a row per precision, batch size and thread count, and an A/A row each.

    Behind them stand the median and the worst of each precision and thread count, and the worst
    A/A.
    """
    wanted, sizes, counts = tuple(precisions), tuple(batch_sizes), tuple(threads)
    rows: dict[tuple[str, int], list[Row]] = {}
    for case in cases:
        for precision in wanted:
            with TemporaryDirectory() as name:
                folder = Path(name)
                peer, ours = (
                    static_export(case, precision, folder),
                    our_graph(case, precision, folder),
                )
                for count in counts:
                    calls = _calls(ours, peer, count, case.images)
                    for batch_size in sizes:
                        pair = _rows_of(case, precision, batch_size, count, calls, at_least_s)
                        rows.setdefault((precision, count), []).extend(pair)
                        figure, (value, a_a) = pair[0]["figure"], (one["value"] for one in pair)
                        tell(f"  {figure}: {value:.3f} (A/A {a_a:.3f})")
    summaries = (_summary(*key, measured) for key, measured in rows.items())
    return [
        *(one for each in rows.values() for one in each),
        *(s for each in summaries for s in each),
    ]


def our_graph(case: GraphCase, precision: str, folder: Path) -> Path:
    """Write our graph of the subnet."""
    template = write_template(case.definition, case.input, case.arch)
    model = subnet_graph(template, case.definition, case.arch, case.state, case.norm_statistics)
    if precision == "int8":
        ranges = activation_ranges(model, [case.images])
        model = quantise(model, ranges, best_format())
    path = folder / "ours.onnx"
    onnx.save(model, path)
    return path


def _calls(ours: Path, peer: Path, threads: int, images: np.ndarray) -> dict[str, Call]:
    """Return a call for ours, and two for each engine: `NAME` and `NAME again`.

    Ours is in the engine that a profile would choose.
    """
    calls: dict[str, Call] = {_OURS: _faster_session(ours, threads, images).run}
    for name, make in installed_engines().items():
        calls[name] = make(peer, threads)
        calls[f"{name} again"] = make(peer, threads)
    return calls


def _faster_session(model: Path, threads: int, images: np.ndarray) -> CompiledSession:
    session = OrtSession(model, threads=threads)
    if openvino_version() is None:
        return session
    other = OpenVinoSession(model, threads=threads)
    batches = [np.resize(images, (size, *images.shape[1:])) for size in (1, 8)]
    return other if is_faster(other, session, batches) else session


def _rows_of(
    case: GraphCase,
    precision: str,
    batch_size: int,
    threads: int,
    calls: Mapping[str, Call],
    at_least_s: float,
) -> list[Row]:
    samples = np.resize(case.images, (batch_size, *case.images.shape[1:]))
    on_samples = {name: (lambda call=call: call(samples)) for name, call in calls.items()}
    samples_s = rotated(on_samples, at_least_s)
    best = min(installed_engines(), key=lambda name: median(samples_s[name]))
    figure = f"actuation/{case.net}/{case.size}/b{batch_size}/t{threads}"
    detail = f"{medians_text(samples_s)}; best static engine {best}; {case.arch.subnet_id}"
    ours, itself = _figures(precision)
    return [
        row(f"{figure}/{ours}", paired_ratio(samples_s, _OURS, best), "ratio", detail),
        row(f"{figure}/{itself}", paired_ratio(samples_s, f"{best} again", best), "ratio", detail),
    ]


def _summary(precision: str, threads: int, rows: list[Row]) -> list[Row]:
    """Return median and worst of ours, and the A/A that is farthest from one, as one above it."""
    ours, itself = _figures(precision)
    ratios = [one["value"] for one in rows if one["figure"].endswith(ours)]
    a_a = [one["value"] for one in rows if one["figure"].endswith(itself)]
    detail = f"over {len(ratios)} settings of network, size and batch size"
    where = f"actuation/all/t{threads}"
    return [
        row(f"{where}/median/{ours}", median(ratios), "ratio", detail),
        row(f"{where}/worst/{ours}", max(ratios), "ratio", detail),
        row(f"{where}/worst/{itself}", max(max(r, 1 / r) for r in a_a), "ratio", detail),
    ]


def _figures(precision: str) -> tuple[str, str]:
    return (
        f"ours_{precision}_over_best_static_{precision}",
        f"best_static_{precision}_over_itself",
    )
