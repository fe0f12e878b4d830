"""`LatencyProfile`: what each subnet costs on one device per batch size, and how accurate it is.

The table is the contract between the device and the scheduler (the role that SushiAbs has in
SUSHI, MLSys'23 section 3, and the offline profile in SuperServe, NSDI'25 section 4.2). It is plain
data with its provenance: which device, data type, thread count, checkpoint and versions made it.

File format 1 (JSON): milliseconds and fractions, unknown keys are kept. In memory: seconds.
Latency between two profiled batch sizes is interpolated linearly, or is that of the next one where
batches are `padded` to it; below the first the first one's latency stands (an upper bound); beyond
the last nothing is guessed: an error says what is profiled.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from slackfit.fastest import FastestBatches
from slackfit.resident_table import ResidentTable
from slackfit.work_table import WorkTable

FORMAT = 1
_KNOWN_KEYS = {
    "format",
    "name",
    "device",
    "dtype",
    "created",
    "source",
    "checkpoint",
    "versions",
    "batch_sizes",
    "subnets",
    "threads",
    "packing",
    "padded",
    "output_kind",
    "residency",
    "work",
}
_OUTPUT_KINDS = ("", "logits", "embedding")
_KNOWN_SUBNET_KEYS = {"id", "accuracy", "macs", "latency_ms"}


class ProfileError(ValueError):
    """A profile is malformed, or does not fit what it is used with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetProfile:
    """One subnet's row: accuracy (fraction), MACs of one sample, latency quantiles in seconds.

    `latency_s` maps a quantile name (`p50`, `p95`, `p99`) to one latency per profiled batch size.
    """

    subnet_id: str
    accuracy: float
    macs: int
    latency_s: Mapping[str, tuple[float, ...]]
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Latency quantiles per (subnet, batch size), accuracy per subnet, and where they came from.

    `subnets` are sorted by (accuracy, id), ascending. `checkpoint` is the fingerprint of the
    supernet that was measured (empty for published tables). `residency` has a table of latencies
    for each subgraph that may be resident; the subnets' own latencies are those beside none. `work`
    has a row for each bucket of work, where queries differ; the subnets' own are of any query.
    `output_kind` says what is served and what accuracy means: `logits` of classes, an `embedding`
    (its neighbours' agreement with the largest's), or empty where nobody said. `padded`: a batch
    between two profiled sizes is filled up to the next one, and takes as long.
    """

    name: str
    device: str
    dtype: str
    batch_sizes: tuple[int, ...]
    subnets: tuple[SubnetProfile, ...]
    created: str = ""
    source: str = ""
    checkpoint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    threads: int | None = None
    packing: str | None = None
    padded: bool = False
    output_kind: str = ""
    residency: tuple[ResidentTable, ...] = ()
    work: WorkTable | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _of_work: dict[int, LatencyProfile] = field(
        default_factory=dict[int, "LatencyProfile"], init=False, repr=False, compare=False
    )
    _tables: dict[str, dict[str, list[float]]] = field(
        default_factory=dict[str, dict[str, list[float]]], init=False, repr=False, compare=False
    )
    _fastest: dict[str, FastestBatches] = field(
        default_factory=dict[str, FastestBatches], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _validate(self)
        ordered = tuple(sorted(self.subnets, key=lambda s: (s.accuracy, s.subnet_id)))
        object.__setattr__(self, "subnets", ordered)

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids in ascending order of accuracy."""
        return tuple(subnet.subnet_id for subnet in self.subnets)

    @property
    def max_batch_size(self) -> int:
        """The largest profiled batch size."""
        return self.batch_sizes[-1]

    def subnet(self, subnet_id: str) -> SubnetProfile:
        """Return one subnet's row. Raises ProfileError that lists the known ids."""
        for subnet in self.subnets:
            if subnet.subnet_id == subnet_id:
                return subnet
        raise ProfileError(
            f"subnet {subnet_id!r} is not in profile {self.name!r}; "
            f"it has {', '.join(self.subnet_ids)}"
        )

    def accuracy(self, subnet_id: str) -> float:
        """Return the profiled accuracy of a subnet, a fraction."""
        return self.subnet(subnet_id).accuracy

    def table(self, quantile: str = "p50") -> Mapping[str, list[float]]:
        """Return {subnet_id: latency in seconds indexed by batch size}, made once per quantile.

        Entry 0 of each list is 0.0 and entry b is the latency of a batch of b, so the hot path
        is two look-ups. Raises ProfileError when a subnet lacks the quantile.
        """
        if quantile not in self._tables:
            self._tables[quantile] = {
                subnet.subnet_id: self._interpolate(subnet, quantile) for subnet in self.subnets
            }
        return self._tables[quantile]

    def fastest(self, quantile: str = "p50") -> FastestBatches:
        """Return the shortest batch of each size, made once per quantile; raises as `table`."""
        if quantile not in self._fastest:
            self._fastest[quantile] = FastestBatches.of(self.table(quantile).values())
        return self._fastest[quantile]

    def latency_s(self, subnet_id: str, batch_size: int, quantile: str = "p50") -> float:
        """Return the latency of `batch_size` samples on a subnet, interpolated between sizes.

        Raises ProfileError for an unknown subnet or a batch size outside 1..max_batch_size.
        """
        if not 1 <= batch_size <= self.max_batch_size:
            raise ProfileError(
                f"batch size {batch_size} is not profiled in {self.name!r}; "
                f"allowed 1 to {self.max_batch_size}"
            )
        self.subnet(subnet_id)
        return self.table(quantile)[subnet_id][batch_size]

    def pareto(self, quantile: str = "p50") -> LatencyProfile:
        """Return this profile without subnets that another one beats.

        A subnet is beaten when another has at least its accuracy and at most its latency at every
        batch size, and is better in one of them; of equals the first id stays. Raises as `table`.
        """
        rows_s = [self._points(subnet, quantile) for subnet in self.subnets]
        beaten = _is_beaten([subnet.accuracy for subnet in self.subnets], rows_s)
        kept = tuple(s for s, is_out in zip(self.subnets, beaten, strict=True) if not is_out)
        return replace(self, subnets=kept)

    def select(self, subnet_ids: Iterable[str]) -> LatencyProfile:
        """Return this profile with the named subnets only. Raises ProfileError on unknown ids."""
        return replace(self, subnets=tuple(self.subnet(i) for i in dict.fromkeys(subnet_ids)))

    def capped(self, max_batch_size: int) -> LatencyProfile:
        """Return this profile up to a batch size. Raises ProfileError for one not profiled."""
        if max_batch_size == self.max_batch_size:
            return self
        if not 1 <= max_batch_size < self.max_batch_size:
            raise ProfileError(
                f"batch size {max_batch_size} is not profiled in {self.name!r}; "
                f"allowed 1 to {self.max_batch_size}"
            )
        sizes = (*(size for size in self.batch_sizes if size < max_batch_size), max_batch_size)
        work = self.work
        if work is not None:
            rows = (
                self.for_bucket(bucket)._at(sizes, work.latency_s[bucket])
                for bucket in range(work.num_buckets)
            )
            work = replace(work, latency_s=tuple(rows))
        return replace(
            self,
            batch_sizes=sizes,
            work=work,
            residency=tuple(
                replace(
                    table, latency_s=self.beside(table.residency_id)._at(sizes, table.latency_s)
                )
                for table in self.residency
            ),
            subnets=tuple(
                replace(subnet, latency_s=self._at(sizes, [subnet.subnet_id])[subnet.subnet_id])
                for subnet in self.subnets
            ),
        )

    def _at(
        self, sizes: Sequence[int], subnet_ids: Iterable[str]
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        """Return latencies by subnet and quantile at other batch sizes."""
        return {
            subnet_id: {
                q: tuple(self.latency_s(subnet_id, size, q) for size in sizes)
                for q in self.subnet(subnet_id).latency_s
            }
            for subnet_id in subnet_ids
        }

    def beside(self, residency_id: str) -> LatencyProfile:
        """Return the profile while a subgraph is resident: a policy on it is aware of the cache.

        Subnets that its table leaves out keep their latencies. Raises ProfileError listing the
        known residencies.
        """
        for table in self.residency:
            if table.residency_id == residency_id:
                rows = table.latency_s
                subnets = tuple(
                    replace(s, latency_s=rows.get(s.subnet_id, s.latency_s)) for s in self.subnets
                )
                return replace(self, subnets=subnets)
        known = ", ".join(table.residency_id for table in self.residency) or "none"
        raise ProfileError(
            f"residency {residency_id!r} is not in profile {self.name!r}; it has {known}"
        )

    def for_bucket(self, bucket: int) -> LatencyProfile:
        """Return the profile of queries of one bucket of work, the same object every time.

        Raises ProfileError for a profile without work, or a bucket that it has not.
        """
        if self.work is None or not 0 <= bucket < self.work.num_buckets:
            has = 0 if self.work is None else self.work.num_buckets
            raise ProfileError(f"profile {self.name!r} has {has} buckets of work, not {bucket}")
        if bucket not in self._of_work:
            rows = self.work.latency_s[bucket]
            subnets = tuple(replace(s, latency_s=rows[s.subnet_id]) for s in self.subnets)
            self._of_work[bucket] = replace(self, subnets=subnets, work=None, residency=())
        return self._of_work[bucket]

    def scaled(self, factor: float, delay_s: float = 0.0) -> LatencyProfile:
        """Return this profile with every latency times `factor`, above 0, plus `delay_s`."""
        return replace(
            self,
            residency=tuple(table.scaled(factor, delay_s) for table in self.residency),
            work=None if self.work is None else self.work.scaled(factor, delay_s),
            subnets=tuple(
                replace(
                    subnet,
                    latency_s={
                        q: tuple(t * factor + delay_s for t in row)
                        for q, row in subnet.latency_s.items()
                    },
                )
                for subnet in self.subnets
            ),
        )

    def check_serves(
        self, *, checkpoint: str, device: str, threads: int | None, subnet_ids: Iterable[str]
    ) -> None:
        """Raise ProfileError unless this profile was measured on what is about to be served."""
        if self.checkpoint != checkpoint:
            raise ProfileError(
                f"profile {self.name!r} was measured on checkpoint {self.checkpoint or '(none)'}, "
                f"but the checkpoint to serve is {checkpoint}; measure one with `supernet profile`"
            )
        if self.device != device:
            raise ProfileError(
                f"profile {self.name!r} was measured on {self.device!r}, this device is "
                f"{device!r}; measure one here with `supernet profile`"
            )
        if self.threads is not None and threads is not None and self.threads != threads:
            raise ProfileError(
                f"profile {self.name!r} was measured with {self.threads} threads, the engine runs "
                f"{threads}; pass --threads {self.threads} or measure again"
            )
        unknown = sorted(set(self.subnet_ids) - set(subnet_ids))
        if unknown:
            raise ProfileError(
                f"profile {self.name!r} names subnets that the checkpoint does not serve: "
                f"{', '.join(unknown)}"
            )

    def _points(self, subnet: SubnetProfile, quantile: str) -> tuple[float, ...]:
        if quantile not in subnet.latency_s:
            raise ProfileError(
                f"subnet {subnet.subnet_id!r} of profile {self.name!r} has no {quantile}; "
                f"it has {', '.join(subnet.latency_s)}"
            )
        return subnet.latency_s[quantile]

    def _interpolate(self, subnet: SubnetProfile, quantile: str) -> list[float]:
        points = self._points(subnet, quantile)
        row = [math.nan] * (self.max_batch_size + 1)
        row[0] = 0.0
        row[: self.batch_sizes[0] + 1] = [0.0] + [points[0]] * self.batch_sizes[0]
        pairs = list(zip(self.batch_sizes, points, strict=True))
        for (b0, t0), (b1, t1) in itertools.pairwise(pairs):
            for b in range(b0 + 1, b1 + 1):
                between = not self.padded and b < b1
                row[b] = t0 + (t1 - t0) * (b - b0) / (b1 - b0) if between else t1
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the file format as plain data (milliseconds, fractions)."""
        optional = {
            "threads": self.threads,
            "packing": self.packing,
            "padded": self.padded or None,
            "output_kind": self.output_kind or None,
        }
        return {
            "format": FORMAT,
            "name": self.name,
            "device": self.device,
            "dtype": self.dtype,
            "created": self.created,
            "source": self.source,
            "checkpoint": self.checkpoint,
            "versions": dict(self.versions),
            **{key: value for key, value in optional.items() if value is not None},
            "batch_sizes": list(self.batch_sizes),
            "subnets": [
                {
                    "id": s.subnet_id,
                    "accuracy": s.accuracy,
                    "macs": s.macs,
                    "latency_ms": {
                        q: [round(t * 1e3, 6) for t in row] for q, row in s.latency_s.items()
                    },
                    **s.extra,
                }
                for s in self.subnets
            ],
            **({"residency": [t.to_json() for t in self.residency]} if self.residency else {}),
            **({"work": self.work.to_json()} if self.work else {}),
            **self.extra,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "profile") -> LatencyProfile:
        """Build a profile from decoded JSON. Raises ProfileError naming the field at fault."""
        if not isinstance(data, dict):
            raise ProfileError(f"{where}: expected a JSON object, got {type(data).__name__}")
        fields = cast("dict[str, Any]", data)
        if fields.get("format") != FORMAT:
            raise ProfileError(f"{where}: format is {fields.get('format')!r}, allowed {FORMAT}")
        missing = [
            k for k in ("name", "device", "dtype", "batch_sizes", "subnets") if k not in fields
        ]
        if missing:
            raise ProfileError(f"{where}: missing {', '.join(missing)}")
        try:
            return cls(
                name=str(fields["name"]),
                device=str(fields["device"]),
                dtype=str(fields["dtype"]),
                created=str(fields.get("created", "")),
                source=str(fields.get("source", "")),
                checkpoint=str(fields.get("checkpoint", "")),
                versions=dict(fields.get("versions", {})),
                threads=fields.get("threads"),
                packing=fields.get("packing"),
                padded=bool(fields.get("padded", False)),
                output_kind=fields.get("output_kind", ""),
                batch_sizes=tuple(fields["batch_sizes"]),
                subnets=tuple(_subnet_from_json(row) for row in fields["subnets"]),
                residency=tuple(map(ResidentTable.from_json, fields.get("residency", ()))),
                work=WorkTable.from_json(fields["work"]) if "work" in fields else None,
                extra={k: v for k, v in fields.items() if k not in _KNOWN_KEYS},
            )
        except ProfileError as error:
            raise ProfileError(f"{where}: {error}") from None
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ProfileError(f"{where}: malformed ({error!r})") from error

    @classmethod
    def load(cls, path: str | Path) -> LatencyProfile:
        """Read a profile file. Raises ProfileError (malformed) or FileNotFoundError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path}: not JSON ({error})") from None
        return cls.from_json(data, where=str(path))

    def save(self, path: str | Path) -> None:
        """Write the profile file; an existing one is replaced only once the new one is whole."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        try:
            partial.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
            partial.replace(target)
        except OSError:  # a full disk, for one
            partial.unlink(missing_ok=True)
            raise


def _subnet_from_json(row: Mapping[str, Any]) -> SubnetProfile:
    missing = [k for k in ("id", "accuracy", "latency_ms") if k not in row]
    if missing:
        raise ProfileError(f"subnet {row.get('id', '?')!r}: missing {', '.join(missing)}")
    return SubnetProfile(
        subnet_id=str(row["id"]),
        accuracy=float(row["accuracy"]),
        macs=int(row.get("macs", 0)),
        latency_s={
            str(q): tuple(float(t) * 1e-3 for t in times) for q, times in row["latency_ms"].items()
        },
        extra={k: v for k, v in row.items() if k not in _KNOWN_SUBNET_KEYS},
    )


def _validate(profile: LatencyProfile) -> None:
    sizes = profile.batch_sizes
    if not sizes or any(type(b) is not int or b < 1 for b in sizes):
        raise ProfileError(f"batch_sizes is {list(sizes)}, allowed whole numbers from 1 up")
    if list(sizes) != sorted(set(sizes)):
        raise ProfileError(f"batch_sizes is {list(sizes)}, it must be strictly increasing")
    if profile.output_kind not in _OUTPUT_KINDS:
        raise ProfileError(
            f"output_kind is {profile.output_kind!r}, allowed {', '.join(_OUTPUT_KINDS[1:])}"
        )
    if not profile.subnets:
        raise ProfileError("subnets is empty: a profile needs at least one subnet")
    ids = [subnet.subnet_id for subnet in profile.subnets]
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise ProfileError(f"subnets listed twice: {', '.join(repeated)}")
    for subnet in profile.subnets:
        _validate_subnet(subnet, len(sizes))
    try:
        for table in profile.residency:
            table.check(len(sizes))
        if profile.work is not None:
            profile.work.check(len(sizes), ids)
    except ValueError as error:
        raise ProfileError(str(error)) from None


def _validate_subnet(subnet: SubnetProfile, num_sizes: int) -> None:
    where = f"subnet {subnet.subnet_id!r}"
    if not 0.0 <= subnet.accuracy <= 1.0:
        raise ProfileError(f"{where}: accuracy is {subnet.accuracy}, allowed a fraction 0 to 1")
    if "p50" not in subnet.latency_s:
        raise ProfileError(f"{where}: latency_ms has no p50")
    for quantile, row in subnet.latency_s.items():
        if len(row) != num_sizes:
            raise ProfileError(
                f"{where}: latency_ms.{quantile} has {len(row)} values for {num_sizes} batch sizes"
            )
        if any(not math.isfinite(t) or t <= 0 for t in row):
            raise ProfileError(f"{where}: latency_ms.{quantile} must be positive and finite")


def _is_beaten(accuracies: Sequence[float], latencies_s: Sequence[Sequence[float]]) -> list[bool]:
    """Say of each subnet, with latencies by batch size, whether another one beats it.

    An equal one that comes earlier does. O(n) array operations: policies ask again whenever
    latencies are corrected, of profiles with hundreds of subnets.
    """
    accuracy, rows_s = np.array(accuracies), np.array(latencies_s)  # (subnets,), (subnets, sizes)
    beaten: list[bool] = []
    for i in range(len(accuracy)):
        others = (accuracy >= accuracy[i]) & (rows_s <= rows_s[i]).all(axis=1)
        is_better = (accuracy > accuracy[i]) | (rows_s < rows_s[i]).any(axis=1)
        is_better[:i] = True
        beaten.append(bool((others & is_better).any()))
    return beaten
