"""Part `peers`: ours against Ray Serve's own batching around fixed subnets, on one bursty trace.

The peer is tuned first, for every load and subnet, over a printed grid of batch size, wait and
request timeout; its best point by attainment is kept. Then all systems meet the same traces, in an
order that rotates from round to round. Loads are shares of the middle subnet's capacity, which the
peer shows in a closed loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.cluster import Cluster, running
from serve.bench.serving.load import LoadScore, pooled
from serve.bench.serving.setting import Setting
from traces.report.plane_plot import PlanePoint as Mark

SIZES = ("smallest", "middle", "largest")
OURS = {"ours": "slackfit", "ours_drainfit": "drainfit"}
EAGER = {"eager_middle": "middle", "eager_largest": "largest"}
VIA_PROXY = ("ours_via_proxy", "fixed_middle_via_proxy")
ALLOWANCE = 0.15  # of the SLO for the way back, the most that is taken: the cores are shared
_BASE_SHARE = 0.2  # of the rate comes evenly; the rest in bursts, about as in SuperServe's 6.1
_CV2 = 8.0
_EQUAL_ACCURACY = 0.0005
_FULL = 0.95  # of the processor time of the machine
_CAPACITY_TRIES = 3
_TUNING_SEED = 100  # never one of the measured traces'


class PeersScale(NamedTuple):
    """How much is run."""

    loads: tuple[float, ...] = (0.6, 0.9, 1.2)
    num_rounds: int = 2
    duration_s: float = 8.0
    tuning_s: float = 2.0
    capacity_s: float = 6.0


QUICK = PeersScale()
FULL = PeersScale(num_rounds=5, duration_s=30.0, tuning_s=8.0, capacity_s=10.0)


class LoadPoint(NamedTuple):
    """One point of the peer's grid; `timeout_s` None: nothing is cancelled."""

    max_batch_size: int
    wait_s: float
    timeout_s: float | None

    def __str__(self) -> str:
        timeout = "none" if self.timeout_s is None else f"{self.timeout_s * 1e3:g} ms"
        return f"batch {self.max_batch_size}, wait {self.wait_s * 1e3:g} ms, timeout {timeout}"


def grid(slo_s: float, max_batch_size: int) -> tuple[LoadPoint, ...]:
    """Return the points that the peer is tuned over."""
    short_s = 0.001
    sizes = sorted({max(1, max_batch_size // 4), max(1, max_batch_size // 2), max_batch_size})
    return (
        *(LoadPoint(size, short_s, slo_s) for size in sizes),
        LoadPoint(max_batch_size, slo_s / 8, slo_s),
        LoadPoint(max_batch_size, short_s, None),
    )


class PeersBench:
    """One comparison; what is measured goes to the journal at once."""

    def __init__(
        self, setting: Setting, journal: Journal, *, scale: PeersScale, tell: Tell
    ) -> None:
        self._setting = setting
        self._load = setting.load
        self._subnets = setting.sized()
        self._journal = journal
        self._max_batch_size = setting.profile.max_batch_size
        self._grid = grid(setting.load.slo_s, self._max_batch_size)
        self._scale = scale
        self._tell = tell
        self._up: Cluster | None = None

    def run(self) -> None:
        """Start a cluster and measure everything that the journal lacks.

        Runs of an earlier call whose client was too slow, or that found the machine full, say
        nothing: they are measured again.
        """
        invalid = self._journal.forget(
            lambda name, cell: (
                name.startswith("peers/run/")
                and not name.endswith(VIA_PROXY)
                and is_disturbed(LoadScore(*cell))
            )
        )
        if invalid:
            self._tell(f"measuring again, they were disturbed: {', '.join(invalid)}")
        allowance_ms = ALLOWANCE * self._load.slo_s * 1e3
        config = self._setting.config(reply_allowance_ms=allowance_ms)
        with running(config, self._max_batch_size) as self._up:
            capacity_qps = self.capacity_qps()
            self._tell(f"the middle subnet does {capacity_qps:.0f} queries/s in a closed loop")
            self._tell("grid of the peer: " + "; ".join(map(str, self._grid)))
            for share in self._scale.loads:
                for size in SIZES:
                    self._tune(share, size)
            for number in range(self._scale.num_rounds):
                for share in self._scale.loads:
                    self._round(share, number, [*OURS, *(f"fixed_{size}" for size in SIZES)])
            for share in self._scale.loads:
                self._round(share, 0, [*EAGER, *VIA_PROXY])

    @property
    def _cluster(self) -> Cluster:
        assert self._up is not None, "only while running"
        return self._up

    def capacity_qps(self) -> float:
        """Return what the peer does on the middle subnet with its largest batch."""
        return self._journal.once("peers/capacity_qps", self._measure_capacity)

    def _measure_capacity(self) -> float:
        point = LoadPoint(self._max_batch_size, 0.001, None)
        self._cluster.tune((self._subnets["middle"], False, *point))
        url, duration_s = self._cluster.peer_url, self._scale.capacity_s / _CAPACITY_TRIES
        tries = [self._load.closed_loop_qps(url, duration_s) for _ in range(_CAPACITY_TRIES)]
        return max(tries)  # whatever else runs on the machine only lowers it

    def proxy_qps(self) -> float:
        """Return what comes through Ray's proxy, to ours on the smallest subnet."""
        return self._journal.once("peers/proxy_qps", self._measure_proxy)

    def _measure_proxy(self) -> float:
        self._cluster.use_policy("fixed:smallest")
        return self._load.closed_loop_qps(self._cluster.proxy_url, self._scale.capacity_s)

    def _tune(self, share: float, size: str) -> None:
        """Try the whole grid for one subnet under one load."""
        for point in self._grid:
            name = self._tuning(share, size, point)
            attainment = self._journal.once(
                name, lambda p=point: self._try(share, size, p).attainment
            )
            self._tell(f"{name}: {attainment:.4f}")

    def _best(self, share: float, size: str) -> LoadPoint:
        """Return the point of the grid with the highest attainment; the first of equals."""
        tried = {p: self._journal.get(self._tuning(share, size, p)) for p in self._grid}
        return max(self._grid, key=lambda point: tried[point])

    @staticmethod
    def _tuning(share: float, size: str, point: LoadPoint) -> str:
        return f"peers/tuning/{share:g}/{size}/{point}"

    def _try(self, share: float, size: str, point: LoadPoint) -> LoadScore:
        self._cluster.tune((self._subnets[size], False, *point))
        spec = self.spec(share, self._scale.tuning_s)
        return self._load.replay(self._cluster.peer_url, spec, _TUNING_SEED)[0]

    def spec(self, share: float, duration_s: float, *, via_proxy: bool = False) -> str:
        """Return the trace's SPEC at a share of the middle subnet's capacity.

        Through Ray's proxy, of the proxy's, where that is less.
        """
        capacity_qps = self.capacity_qps()
        if via_proxy:
            capacity_qps = min(capacity_qps, self.proxy_qps())
        rate_qps = share * capacity_qps
        base, variant = _BASE_SHARE * rate_qps, (1 - _BASE_SHARE) * rate_qps
        length_s = self._load.warmup_s + duration_s
        return f"bursty:base={base:.1f},variant={variant:.1f},cv2={_CV2:g},duration={length_s:g}"

    def _round(self, share: float, number: int, systems: list[str]) -> None:
        """Measure the systems on trace `number`, in an order that rotates with it."""
        first = number % len(systems)
        for system in systems[first:] + systems[:first]:
            name = f"peers/run/{share:g}/{number}/{system}"
            score = self._journal.once(name, lambda s=system: self._measure(share, s, number))
            self._tell(
                f"{name}: {LoadScore(*score).attainment:.4f} at {LoadScore(*score).accuracy:.4f}"
            )

    def _measure(self, share: float, system: str, seed: int) -> LoadScore:
        via_proxy = system.endswith("_via_proxy")
        spec = self.spec(share, self._scale.duration_s, via_proxy=via_proxy)  # may measure first
        kind = system.removesuffix("_via_proxy")
        cluster = self._cluster
        if kind in OURS:
            cluster.use_policy(OURS[kind])
            url = cluster.proxy_url if via_proxy else cluster.url
        else:
            size = EAGER.get(kind, kind.removeprefix("fixed_"))
            cluster.tune((self._subnets[size], kind in EAGER, *self._best(share, size)))
            url = cluster.peer_proxy_url if via_proxy else cluster.peer_url
        return self._load.replay(url, spec, seed)[0]

    # --- rows ------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        if "peers/capacity_qps" not in self._journal:
            return []
        capacity = row(
            "serving/peers/capacity", self.capacity_qps(), "queries/s",
            f"{self._subnets['middle']}, the best of three closed loops through the peer, batch "
            f"{self._max_batch_size}; the loads are shares of it",
        )  # fmt: skip
        slo = row("serving/peers/slo", self._load.slo_s, "s", "of every query, see serving/slo")
        rows = [capacity, slo]
        if "peers/proxy_qps" in self._journal:
            text = "a closed loop to ours on the smallest subnet; runs via proxy are shares of it"
            rows.append(row("serving/peers/proxy_capacity", self.proxy_qps(), "queries/s", text))
        for share in self._scale.loads:
            rows += self._load_rows(share)
        return rows

    def scores(self, share: float) -> dict[str, list[LoadScore]]:
        """Return the runs of every system under one load, as far as measured."""
        found: dict[str, list[LoadScore]] = {}
        systems = [*OURS, *(f"fixed_{s}" for s in SIZES), *EAGER]
        for system in [*systems, *VIA_PROXY]:
            names = [f"peers/run/{share:g}/{n}/{system}" for n in range(self._scale.num_rounds)]
            runs = [LoadScore(*self._journal.get(name)) for name in names if name in self._journal]
            if runs:
                found[system] = runs
        return found

    def panels(self) -> dict[str, dict[str, Mark]]:
        """Return the picture's panels: what is measured of every system, by load.

        But for those through Ray's proxy, whose loads are others.
        """
        found: dict[str, dict[str, Mark]] = {}
        for share in self._scale.loads:
            wholes = {name: pooled(runs) for name, runs in self.scores(share).items()}
            if wholes:
                title = f"{share * 100:.0f} % of the middle subnet's capacity"
                found[title] = {
                    _label(name): Mark(s.accuracy, s.attainment, s.interval)
                    for name, s in wholes.items()
                    if s.on_time and name not in VIA_PROXY
                }
        return found

    def _load_rows(self, share: float) -> list[Row]:
        scores = self.scores(share)
        rows: list[Row] = []
        for system, runs in scores.items():
            whole = pooled(runs)
            figure = f"serving/peers/load{share * 100:.0f}/{system}"
            detail = self._detail(share, system, runs, whole)
            rows.append(row(f"{figure}/attainment", whole.attainment, "fraction", detail))
            rows.append(row(f"{figure}/accuracy", whole.accuracy, "fraction", _measured(whole)))
        for ours in OURS:
            rows += bar_rows(share, ours, {name: pooled(runs) for name, runs in scores.items()})
        return rows

    def _detail(
        self, share: float, system: str, runs: Sequence[LoadScore], whole: LoadScore
    ) -> str:
        size = EAGER.get(system, system.removesuffix("_via_proxy").removeprefix("fixed_"))
        how = OURS.get(system, "") if size not in SIZES else str(self._best(share, size))
        each = ", ".join(f"{run.attainment:.4f}" for run in runs)
        num_valid = sum(run.is_valid for run in runs)
        busy = "unknown" if whole.busy is None else f"{whole.busy:.0%}"
        p50, p99 = (f"{(v or 0) * 1e3:.1f}" for v in (whole.p50_s, whole.p99_s))
        via_proxy = system.endswith("_via_proxy")
        spec = self.spec(share, self._scale.duration_s, via_proxy=via_proxy)
        low, high = whole.interval
        return (
            f"{how or 'slackfit'}{self._allowed(system)}; {spec}, seeds 0 to {len(runs) - 1}; "
            f"{whole.num_queries} queries; each run {each}; 95 % of the widest {low:.4f} to "
            f"{high:.4f}; p50 {p50} ms, p99 {p99} ms; {whole.outcomes}; client lag p99 "
            f"{whole.lag_p99_s * 1e3:.2f} ms, valid {num_valid} of {len(runs)}; client "
            f"{whole.client_cores:.2f} cores, machine {busy} busy"
        )

    def _allowed(self, system: str) -> str:
        allowance_ms = ALLOWANCE * self._load.slo_s * 1e3
        return f", reply_allowance_ms {allowance_ms:g}" if system.startswith("ours") else ""


def _label(system: str) -> str:
    return f"ours, {OURS[system]}" if system in OURS else system.replace("_", " ")


def is_disturbed(score: LoadScore) -> bool:
    """Whether the client was too slow, or the machine full: on two cores no system here fills it.

    But for Ray's proxy, which does.
    """
    return not score.is_valid or (score.busy or 0.0) >= _FULL


def bar_rows(share: float, ours: str, scores: Mapping[str, LoadScore]) -> list[Row]:
    """Return whether ours dominates each fixed subnet under one load, and all of them.

    Domination: at least its attainment with higher accuracy, or at least its accuracy with at
    most half of its misses.
    """
    mine = scores.get(ours)
    fixed = {size: scores[f"fixed_{size}"] for size in SIZES if f"fixed_{size}" in scores}
    if mine is None or len(fixed) < len(SIZES):
        return []
    figure = f"serving/peers/load{share * 100:.0f}/{ours}_dominates"
    rows = [
        row(f"{figure}_{size}", float(dominates(mine, other)), "bool", _against(mine, other))
        for size, other in fixed.items()
    ]
    best = max(fixed, key=lambda size: fixed[size].attainment)
    over_best = row(
        f"{figure}_best", float(dominates(mine, fixed[best])), "bool",
        f"the best fixed one by attainment is {best}: {_against(mine, fixed[best])}",
    )  # fmt: skip
    return [*rows, over_best]


def dominates(mine: LoadScore, other: LoadScore) -> bool:
    """Say whether `mine` dominates `other`; see `bar_rows`.

    Equal accuracy is equal within 0.0005.
    """
    gain = mine.accuracy - other.accuracy
    if mine.attainment >= other.attainment and gain > _EQUAL_ACCURACY:
        return True
    misses, theirs = 1 - mine.attainment, 1 - other.attainment
    return gain >= -_EQUAL_ACCURACY and theirs > 0 and 2 * misses <= theirs


def _against(mine: LoadScore, other: LoadScore) -> str:
    low, high = other.interval
    is_alike = mine.interval[1] >= low and high >= mine.interval[0]
    return (
        f"attainment {mine.attainment:.4f} against {other.attainment:.4f} (95 % intervals "
        f"{'overlap' if is_alike else 'do not overlap'}), accuracy {mine.accuracy:.4f} against "
        f"{other.accuracy:.4f}, misses {mine.num_queries - mine.on_time} against "
        f"{other.num_queries - other.on_time}"
    )


def _measured(score: LoadScore) -> str:
    text = "profiled accuracy, mean over on-time answers"
    if score.measured_accuracy is None:
        return text
    return f"{text}; measured top-1 of all answers {score.measured_accuracy:.4f}"
