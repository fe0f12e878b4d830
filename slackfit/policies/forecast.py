"""How many queries the near future brings: a running mean and dispersion of counts per window.

The dispersion is the Fano factor, variance over mean of the counts (1 for Poisson, about CV^2 for
renewals). Both are exponentially weighted, plain averages while few windows are known. Until the
first window is full the rate is an upper bound from the count so far: a burst at the start must
not meet a policy that takes the silence before it for the rate. Immutable, so that it fits in a
policy's memo; O(1) per window.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from slackfit.policy import View

MEAN_OVER = 24  # windows that the mean remembers
FANO_OVER = 32  # windows that the dispersion remembers
FANO_PRIOR = 4.0  # assumed before anything was seen, with the weight of:
PRIOR_WINDOWS = 2
PARTS_OF_FIRST = 8  # the first window is looked at in parts


class Arrivals(NamedTuple):
    """What arrives until it must leave by `horizon_s`: counted on, mean, standard deviation."""

    horizon_s: float
    counted: float
    mean: float
    sigma: float


class Forecast(NamedTuple):
    """What was learnt up to `until_s - window_s`; `update` renews it from `until_s` on.

    `rate_qps` is the expected rate, `fano` the dispersion of counts per `window_s`.
    """

    window_s: float
    begin_s: float  # of the window that is being counted
    until_s: float
    num_windows: int
    rate_qps: float
    fano: float
    mean_qps: float  # as `rate_qps`, without the margin for a short history

    def arrivals(self, horizon_s: float, share: float = 1.0) -> tuple[float, float]:
        """Return mean and standard deviation of the count within `horizon_s`.

        Of the rate `share` is counted on; below 1 without the margin for a short history.
        """
        mean = share * (self.rate_qps if share >= 1 else self.mean_qps) * horizon_s
        return mean, sqrt(self.fano * mean)

    def update(self, view: View, now_s: float) -> Forecast:
        """Return the forecast with the window that ends now; call it once `until_s` is reached."""
        length_s = now_s - self.begin_s
        if self.num_windows == 0 and length_s < self.window_s:
            return self._early(view, now_s)
        if length_s <= 0.0:  # windows of another length, at the very moment one ended
            return self
        rate_qps = view.arrivals_within(length_s) / length_s
        known = self.num_windows + 1
        mean_qps = self.mean_qps + (rate_qps - self.mean_qps) / min(known, MEAN_OVER)
        deviation = (rate_qps - (self.mean_qps if self.num_windows else mean_qps)) ** 2
        seen = deviation * length_s / mean_qps if mean_qps > 0 else self.fano
        fano = self.fano + (seen - self.fano) / min(known + PRIOR_WINDOWS, FANO_OVER)
        fano = max(fano, 1.0)
        margin_qps = 0.0
        if known < MEAN_OVER:
            margin_qps = sqrt(fano * mean_qps / (known * self.window_s)) * (1 - known / MEAN_OVER)
        until_s = now_s + self.window_s
        return Forecast(self.window_s, now_s, until_s, known, mean_qps + margin_qps, fano, mean_qps)

    def resized(self, window_s: float, now_s: float) -> Forecast:
        """Return the forecast with windows of another length; what was learnt is kept."""
        return self._replace(window_s=window_s, until_s=min(self.until_s, now_s))

    def _early(self, view: View, now_s: float) -> Forecast:
        """Return an upper bound from the part of the first window that has passed."""
        length_s = max(now_s - self.begin_s, self.window_s / PARTS_OF_FIRST)
        count = view.arrivals_within(2 * length_s)  # what is older came before any decision
        rate_qps = (count + sqrt(self.fano * count)) / length_s
        until_s = now_s + self.window_s / PARTS_OF_FIRST
        return self._replace(until_s=until_s, rate_qps=rate_qps, mean_qps=rate_qps)


def begin_forecast(view: View, now_s: float, window_s: float) -> Forecast:
    """Return a first forecast, from what arrived since the oldest waiting query."""
    begin_s = min(view.queue.head().arrival_s, now_s)
    empty = Forecast(window_s, begin_s, now_s, 0, 0.0, FANO_PRIOR, 0.0)
    return empty.update(view, now_s)
