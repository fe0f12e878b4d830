"""How far the training benchmark is, a line at a time: runs, steps, processor time still to go."""

from __future__ import annotations

import time

from serve.bench.rows import Tell
from training.trainer.run_log import StepReport

_EVERY_S = 60.0
_SURE_S = 30.0  # of processor time: from then on what was used says more than what was expected


class TimeLeft:
    """Knows what all runs are expected to take, and hears of every step."""

    def __init__(self, tell: Tell, *, num_runs: int, expected_s: float):
        """`expected_s` is the processor time of all `num_runs` that are to be made."""
        self._tell = tell
        self._num_runs, self._ahead_s = num_runs, expected_s
        self._num_done, self._done_s = 0, 0.0
        self._began_s = time.process_time()
        self._told_s = 0.0
        self._what = ""
        self._step_s = 0.0

    def begin(self, what: str, *, step_s: float) -> None:
        """A run begins, of which a step is expected to take `step_s` of processor time."""
        self._what, self._step_s = what, step_s
        self._told_s = 0.0

    def step(self, report: StepReport) -> None:
        """Count a step; say where the run is at its first one, and then once a minute."""
        if not self._told_s:  # what an earlier sitting did of this run is not ahead
            self._ahead_s -= (report.step - 1) * self._step_s
        self._done_s += self._step_s
        now_s = time.monotonic()
        if self._told_s and now_s - self._told_s < _EVERY_S:
            return
        self._told_s = now_s
        self._tell(
            f"{self._what}: step {report.step} of {report.total_steps}; "
            f"{self._num_done} of {self._num_runs} runs done, {self.text()} left"
        )

    def end(self, result: str) -> None:
        """A run is over."""
        self._num_done += 1
        self._tell(f"{self._what}: {result}")

    def text(self) -> str:
        """Return what is left, in words.

        >>> TimeLeft(print, num_runs=1, expected_s=5400.0).text()
        '1 h 30 min of processor time'
        """
        used_s = time.process_time() - self._began_s
        slower = used_s / self._done_s if self._done_s > _SURE_S else 1.0
        minutes = max(self._ahead_s - self._done_s, 0.0) * slower / 60
        hours, rest = divmod(round(minutes), 60)
        return f"{hours} h {rest} min of processor time"
