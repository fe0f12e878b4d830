"""One replay against a live server, from the address to the reports.

Asks the server what it serves, makes the samples fit, sends from one process or several, and, when
asked to, lets the simulator serve the same trace and holds the two against each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.client.dial import Dial, dial
from serve.client.info import ServerSettings, read_settings
from serve.client.replicas import split_urls
from slackfit.metrics import summarize
from slackfit.profile import LatencyProfile
from traces.burstiness import trace_summary
from traces.generators.arrivals import gamma
from traces.open_loop.fidelity import batch_slowdowns, fidelity, simulated_report, wire_s
from traces.open_loop.live_twin import LiveServer, simulate_live
from traces.open_loop.payloads import Payloads, load_payloads, noise_payloads
from traces.open_loop.replay import Progress, ReplayResult, replay
from traces.open_loop.replay_options import DEFAULTS, ReplayOptions
from traces.open_loop.sender_processes import processes_for, replay_in_processes
from traces.open_loop.target import Model, Target
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import with_figures
from traces.report.intervals import attainment_intervals
from traces.trace import Trace, TraceError

_PROBE_QPS = 20.0
_PROBE_S = 2.0
_PROBE_SLO_S = 1.0


@dataclass(frozen=True, kw_only=True)
class LiveReplay:
    """What to send, to whom, and how.

    `model` None is the server's first, `label` None its policy; `data` is the folder of samples
    (None: noise), `twin` the profile to simulate the same with (None: do not). `num_processes`
    None: as many as the trace asks for. `is_alone`: the replicas that the server names get nothing.
    """

    trace: Trace
    url: str
    options: ReplayOptions = DEFAULTS
    model: str | None = None
    label: str | None = None
    data: Path | None = None
    num_processes: int | None = None
    twin: LatencyProfile | None = None
    is_alone: bool = False

    async def run(
        self, progress: Callable[[Progress], None] | None = None
    ) -> tuple[list[dict[str, Any]], ReplayResult]:
        """Return the report of the run, that of its simulated twin if asked for, and the result.

        Raises:
            ClientError: the server can't be reached or serves nothing that can be replayed.
            TraceError: trace, samples and model do not fit together.
        """
        if self.twin is not None and len(split_urls(self.url)) > 1:
            raise TraceError(
                f"{self.url}: the simulation beside a replay is of one server; give one address, "
                "or simulate the trace alone: `supernet simulate --replicas N --routing client`"
            )
        client, model = await dial(self.url, self.model, spread=self._spreads)
        try:
            payloads, source = self._payloads(model)
            if self.twin is not None:
                check_profile(model, self.twin)
            server = await self._server(client, model, payloads)
            started_s = time.monotonic()
            result = await self._replay(client, model, payloads, progress)
            elapsed_s = time.monotonic() - started_s
        finally:
            await client.close()
        report = self._report(model, source, result, elapsed_s)
        if server is None or not result.outcomes:
            return [report], result
        return self._with_twin(report, server, result), result

    async def run_repeatedly(
        self, count: int, progress: Callable[[Progress], None] | None = None
    ) -> list[tuple[list[dict[str, Any]], ReplayResult]]:
        """Return what `run` does, `count` times; a report then says which `repeat` it is of.

        An interrupted run is the last. Raises what `run` raises.
        """
        runs: list[tuple[list[dict[str, Any]], ReplayResult]] = []
        for number in range(1, count + 1):
            reports, result = await self.run(progress)
            if count > 1:
                reports = [{**report, "repeat": number} for report in reports]
            runs.append((reports, result))
            if result.is_partial:
                break
        return runs

    @property
    def _spreads(self) -> bool:
        """Whether queries also go to the replicas that the server names: not beside a twin."""
        return self.twin is None and not self.is_alone

    def _payloads(self, model: Model) -> tuple[Payloads, str]:
        if self.data is None:
            payloads = noise_payloads(model, self.options.seed)
            return payloads, f"{len(payloads.images)} samples of uniform noise"
        try:
            return load_payloads(self.data).fitted(model.tensor), str(self.data)
        except TraceError as error:
            text = str(error)
            raise TraceError(text if str(self.data) in text else f"{self.data}: {text}") from None

    async def _replay(
        self,
        client: Target,
        model: Model,
        payloads: Payloads,
        progress: Callable[[Progress], None] | None,
    ) -> ReplayResult:
        count = self.num_processes or processes_for(self.trace)
        if count == 1:
            return await replay(self.trace, client, payloads, self.options, progress=progress)
        address = Dial(self.url, model.name, spread=self._spreads)
        return await replay_in_processes(
            self.trace, address, count, payloads, self.options, progress=progress
        )

    async def _server(self, client: Target, model: Model, payloads: Payloads) -> LiveServer | None:
        """Return the server to simulate, if so asked; what can't be is known before the run."""
        if self.twin is None:
            return None
        return simulated_server(model, self.twin, await self._wire_s(client, payloads))

    async def _wire_s(self, client: Target, payloads: Payloads) -> float:
        """Measure what a query takes besides waiting and execution, on the idle server."""
        probe = gamma(_PROBE_QPS, 0.0, _PROBE_S)
        options = ReplayOptions(slo_s=_PROBE_SLO_S, seed=self.options.seed)
        result = await replay(probe, client, payloads._replace(labels=None), options)
        if result.is_partial:  # interrupted: there is nothing to keep yet
            raise asyncio.CancelledError
        return wire_s(result.answers)

    def _report(
        self, model: Model, source: str, result: ReplayResult, elapsed_s: float
    ) -> dict[str, Any]:
        parameters, options = model.parameters, self.options
        settings = read_settings(parameters)
        slo_s = options.slo_s
        if slo_s is None:
            assert self.trace.slo_s is not None, "replay refuses a trace without deadlines"
            slo_s = float(np.median(self.trace.slo_s))
        report = summarize(
            result.outcomes,
            policy=self.label or str(parameters.get("policy", "unknown")),
            slo_s=slo_s,
            duration_s=result.duration_s,
            seed=options.seed,
            profile=str(parameters.get("profile", "")),
            wall_s=elapsed_s,
            mode="live",
            trace=trace_summary(self.trace),
            config={
                "model": model.name,
                "server_policy": parameters.get("policy"),
                "server_device": parameters.get("device"),
                "server_settings": None if settings is None else asdict(settings),
                "payloads": source,
                "warmup_s": options.warmup_s,
                "max_retries": options.max_retries,
            },
            **result.extra(),
        )
        report["slo_attainment_95"] = attainment_intervals(report)
        report["zoom"] = burst_zoom(result.outcomes, result.duration_s)
        return with_figures(report, result.outcomes, self.trace)

    def _with_twin(
        self, live: dict[str, Any], server: LiveServer, result: ReplayResult
    ) -> list[dict[str, Any]]:
        slowdowns = batch_slowdowns(result, server.profile, server.wire_s)
        last_s = result.answers[-1].intended_s
        sent = self.trace.window(0.0, last_s + 1e-9) if result.is_partial else self.trace
        simulated = simulate_live(sent, server, self.options)
        live["fidelity"] = fidelity(result.outcomes, simulated)
        live["fidelity_wire_ms"] = server.wire_s * 1e3
        if slowdowns:
            again = simulate_live(sent, server, self.options, slowdowns=slowdowns)
            factors = [slowdown.factor for slowdown in slowdowns]
            live["fidelity_at_live_speed"] = fidelity(result.outcomes, again)
            live["batch_time_over_profile"] = {
                f"p{q}": float(np.percentile(factors, q)) for q in (50, 90, 99)
            }
        return [live, simulated_report(simulated, live, sent)]


def check_profile(model: Model, profile: LatencyProfile) -> None:
    """Refuse a profile that is not the one that the server serves with. Raises TraceError."""
    served = model.parameters.get("profile")
    if served != profile.name:
        raise TraceError(
            f"the server serves with profile {served!r}, the one given is {profile.name!r}; "
            "simulate with the profile that the server was started with (--profile)"
        )


def simulated_server(model: Model, profile: LatencyProfile, wire_s: float) -> LiveServer:
    """Return the server to simulate: as it says it is set, else as one is by default.

    Raises ProfileError when it offers subnets or batches that the profile lacks.
    """
    from serve.models.deadline import MAX_ALLOWANCE

    settings = read_settings(model.parameters) or _default_settings(model, profile)
    return LiveServer(
        policy=settings.policy,
        profile=profile.select(model.versions or profile.subnet_ids).capped(
            settings.max_batch_size
        ),
        wire_s=wire_s,
        reply_allowance_s=settings.reply_allowance_s,
        max_allowance=MAX_ALLOWANCE,
        max_queue=settings.max_queue,
        drop_hopeless=settings.drop_hopeless,
        triage=settings.triage,
        correct_latency=settings.correct_latency,
    )


def _default_settings(model: Model, profile: LatencyProfile) -> ServerSettings:
    """Return the settings of a server that does not say them: one of an earlier version."""
    from serve.config import ServeConfig

    defaults = {name: field.default for name, field in ServeConfig.model_fields.items()}
    return ServerSettings(
        policy=str(model.parameters.get("policy", defaults["policy"])),
        slo_s=defaults["slo_ms"] * 1e-3,
        max_batch_size=profile.max_batch_size,
        reply_allowance_s=defaults["reply_allowance_ms"] * 1e-3,
        max_queue=defaults["max_queue"],
        drop_hopeless=defaults["drop_hopeless"],
        triage=True,
        correct_latency=defaults["correct_latency"],
    )
