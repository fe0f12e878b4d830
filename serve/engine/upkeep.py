"""`Upkeep`: what a device does when no query needs it, and what that changes in the plans.

An executor's errands (`Executor.background`: capturing a graph, for instance) are run between two
batches, where the scheduler finds that no deadline suffers; a device that had nothing to do for
long is probed, and then runs what errands there are. Batches are planned with the latencies that
hold as things are: when graphs came or went, the scheduler goes on with another profile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from serve.engine.runner import BatchRunner
from serve.engine.watchdog import Watchdog
from slackfit.errand import Errand
from slackfit.policy import DeviceLoad
from slackfit.profile import LatencyProfile
from slackfit.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from subnetact.executor import Background

_ASK_AGAIN_S = 1.0  # whether a slower device would do: laying that profile out takes a while


class Upkeep:
    """Used by the device thread; `lock` is the engine's, and held where the methods say so."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: BatchRunner,
        watchdog: Watchdog,
        *,
        lock: threading.Lock,
        clock: Callable[[], float],
    ) -> None:
        self.offered = scheduler.offered
        """The offered subnets as they were measured, whatever runs slower now."""
        self._scheduler = scheduler
        self._runner = runner
        self._watchdog = watchdog
        self._lock = lock
        self._clock = clock
        self._background: Background | None = getattr(runner.executor, "background", None)
        self._planned_version = -1
        self._replan_s = 0.0
        self._slow_from_s = -inf  # when there may be time for an errand that slows the device

    def offer(self, profile: LatencyProfile) -> LatencyProfile:
        """Take another set of subnets in; return what to plan with (lock held)."""
        self.offered = profile
        return profile if self._background is None else self._background.planned(profile)

    def replan(self) -> None:
        """Have the scheduler plan with what batches take now, if that changed (lock held)."""
        if self._background is not None and self._planned_version != self._background.version:
            version = self._background.version
            self._plan_with(version, self._background.planned(self.offered))

    def catch_up(self) -> None:
        """Note that the device has nothing to do, and plan with what changed meanwhile.

        So no batch waits for it. What takes milliseconds with hundreds of subnets is done without
        the lock.
        """
        start_s, offered, background = self._clock(), self.offered, self._background
        if background is None or self._planned_version == background.version:
            with self._lock:
                self._watchdog.returned()
            return
        version = background.version  # before: whatever changes meanwhile is planned with later
        planned = background.planned(offered)
        with self._lock:
            self._watchdog.returned()
            if offered is self.offered:
                self._plan_with(version, planned)
            policy, profile = self._scheduler.policy, self._scheduler.profile
        prepare = getattr(policy, "prepare", None)
        if prepare is not None:
            prepare(profile)
        self._replan_s = self._clock() - start_s

    def run_errand(self, others: Callable[[], DeviceLoad]) -> bool:
        """Run the next errand, if there is one and time for it; return whether.

        `others` says what other models ask of the device; it is asked without the lock.
        """
        background = self._background
        errand = None if background is None else background.next_errand()
        if background is None or errand is None:
            return False
        errand = errand._replace(takes_s=errand.takes_s + self._replan_s)
        if errand.slows and self._clock() < self._slow_from_s:
            return False
        after = background.planned(self.offered, errand) if errand.slows else None
        asked = others()
        with self._lock:
            now_s = self._clock()
            if not self._scheduler.has_time(errand, now_s, asked, after):
                self._slow_from_s = now_s + _ASK_AGAIN_S
                return False
        self._run(background, errand)
        return True

    def probe(self, is_needed: Callable[[], bool]) -> None:
        """Run a sample that nobody asked about, then errands until none is left or `is_needed`.

        No errands where there was no memory for that. Raises what else the executor raises.
        """
        subnet_id = self.offered.subnet_ids[0]
        self._expect(self.offered.latency_s(subnet_id, 1))
        had_memory = self._runner.probe(subnet_id)
        self.catch_up()
        background = self._background if had_memory else None
        while background is not None and not is_needed():
            errand = background.next_errand()
            if errand is None:
                return
            self._run(background, errand)

    def _run(self, background: Background, errand: Errand) -> None:
        self._expect(errand.takes_s)
        background.run_errand()
        self.catch_up()

    def _expect(self, takes_s: float) -> None:
        with self._lock:
            self._watchdog.launched(self._clock(), takes_s)

    def _plan_with(self, version: int, planned: LatencyProfile) -> None:
        self._planned_version = version
        self._scheduler.reconfigure(profile=planned)
