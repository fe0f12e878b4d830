"""`supernet top`: a live view of a server, out of the metrics that it exports anyway."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

import httpx
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from serve.client.addresses import request_base
from serve.client.environment import TOKEN, bearer
from serve.client.rest_transport import socket_transport
from serve.commands.top_figures import Reading, figures, read, refusals
from serve.commands.top_streams import stream_figures, stream_panel
from serve.commands.top_view import away, view
from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors

_TIMEOUT_S = 5.0


class AwayError(RuntimeError):
    """The server does not answer, or what it answers are no metrics."""


def top(
    url: Annotated[
        str, typer.Argument(help="A server, or the address of metrics to read (Ray's, say).")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Print the figures since the server's start, and end.")
    ] = False,
    interval_s: Annotated[float, typer.Option(help="Seconds between two readings.", min=0.1)] = 1.0,
    window_s: Annotated[
        float, typer.Option(help="Seconds that the figures are about.", min=1.0)
    ] = 10.0,
) -> None:
    """Watch a server live: attainment, accuracy, load, subnets, slack, misses, tenants; streams.

    A server with tokens wants one of scope metrics in the environment variable SUPERNET_TOKEN.
    """
    console = plain_console()
    with httpx.Client(
        timeout=_TIMEOUT_S,
        follow_redirects=True,
        headers=bearer(),
        transport=socket_transport(url),
    ) as client:
        view_of = Top(url, client, window_s=window_s)
        if once:
            prefix = f"supernet top: {view_of.where} does not answer"
            with user_errors(AwayError, prefix=prefix):
                console.print(view_of.totals())
            return
        try:
            watch(view_of, console, interval_s)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def watch(
    view_of: Top,
    console: Console,
    interval_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show frames until interrupted; where the output is no terminal, one below the other."""
    with contextlib.ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, screen=True))
        while True:
            frame = view_of.frame()
            if live is None:
                console.print(frame)
            else:
                live.update(frame, refresh=True)
            sleep(interval_s)


class Top:
    """The frames of one server: the first since its start, the next ones of the last seconds."""

    def __init__(
        self,
        url: str,
        client: httpx.Client,
        *,
        window_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        url = url if "://" in url else f"http://{url}"
        self.where = url.rstrip("/").removesuffix("/metrics")
        self._client = client
        self._window_s = window_s
        self._clock = clock
        self._readings: deque[tuple[float, Reading]] = deque()

    def frame(self) -> RenderableType:
        """Ask the server and return what to show; one that is away is shown as such."""
        try:
            new = self._read()
        except AwayError as error:
            self._readings.clear()  # when it is back, it may be another one
            return away(self.where, str(error))
        now_s = self._clock()
        while len(self._readings) > 1 and self._readings[1][0] <= now_s - self._window_s:
            self._readings.popleft()
        before = self._readings[0] if self._readings else None
        self._readings.append((now_s, new))
        if before is None:
            return self._view(new, {}, None)
        before_s, old = before
        return self._view(new, old, now_s - before_s)

    def totals(self) -> RenderableType:
        """Return the frame of the time since the server's start. Raises AwayError."""
        return self._view(self._read(), {}, None)

    def _view(self, new: Reading, old: Reading, span_s: float | None) -> RenderableType:
        streams = [stream_panel(self.where, each) for each in stream_figures(new, old, span_s)]
        return view(self.where, figures(new, old, span_s), refusals(new, old), streams)

    def _read(self) -> Reading:
        try:
            response = self._client.get(f"{request_base(self.where)}/metrics")
            response.raise_for_status()
            return read(response.text)
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            hint = f" (it wants a token in {TOKEN})" if code in (401, 403) else ""
            raise AwayError(f"it says {code} to GET /metrics{hint}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AwayError(str(error) or type(error).__name__) from None
        except ValueError:
            raise AwayError("what it exports are no metrics of Prometheus' text form") from None
