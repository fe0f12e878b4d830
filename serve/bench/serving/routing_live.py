"""The live half of part `routing`: two replica processes, one of them slow, and who asks them."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

from serve.client.dial import Dial, dial
from serve.config import ServeConfig, parse_config
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.spreading import Outlook
from traces.open_loop.payloads import noise_payloads
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.sender_processes import replay_in_processes
from traces.spec.spec import parse_spec

POLICY = "drainfit"
SLO_S = 0.036
SLOWER = 3.0
STRETCH = 12.0
"""Of the live profile and SLO, so that this machine's milliseconds do not count."""
CLIENTS = 2
WARMUP_S = 16.0  # what a slow device takes is learned meanwhile
_SHAPE = (3, 8, 8)
_MODEL = "resnet"


class InTurn:
    """Replicas in turn, whatever they tell: what clients are compared with that do not listen."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self.use(())

    def use(self, names: Sequence[str], *, spare: Sequence[str] = ()) -> None:
        """Take turns among these."""
        self._names = tuple(names)
        self._turns = cycle(self._names)

    def choose(self, now_s: float) -> str:
        """Return the next one."""
        return next(self._turns)

    def answered(self, name: str, now_s: float, told: Outlook | None = None) -> None:
        """Nothing is learned."""

    def failed(self, name: str, now_s: float) -> None:
        """Nobody is left."""

    def forgotten(self, name: str) -> None:
        """Nothing was open."""

    def has_sound(self, now_s: float) -> bool:
        """Whether a retry may go elsewhere at once: never."""
        return False


async def replayed(
    url: str, spec: str, seed: int, chooser: Callable[[], InTurn] | None
) -> list[Outcome]:
    """Replay a trace from several processes against replicas; return how its queries ended."""
    target, model = await dial(url, _MODEL, spread=False)
    await target.close()
    slo_s = SLO_S * STRETCH
    result = await replay_in_processes(
        parse_spec(spec, seed=seed),
        Dial(url, _MODEL, spread=False, chooser=chooser),
        CLIENTS,
        noise_payloads(model, seed),
        ReplayOptions(slo_s=slo_s, seed=seed, timeout_s=10 * slo_s, warmup_s=WARMUP_S),
    )
    if result.is_partial:  # Ctrl-C: a cut run is no cell
        raise KeyboardInterrupt
    return list(result.outcomes)


@contextlib.contextmanager
def two_replicas(profile: LatencyProfile) -> Iterator[list[str]]:
    """Serve two replicas, the second on a slower device; yields their addresses."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "profile.json"
        profile.save(path)
        urls: list[str] = []
        for number, slower in enumerate((1.0, SLOWER)):
            config = _config(path)
            settings = Path(folder) / f"serve{number}.json"
            settings.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
            command = [sys.executable, "-m", "serve.bench.mixed.shared_replica", str(settings)]
            process = subprocess.Popen([*command, f"{slower:g}"], stdout=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.terminate)
            assert process.stdout is not None, "asked for"
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the replica did not come up")
            urls.append(f"http://127.0.0.1:{config.door_port}")
        yield urls


def _config(profile: Path) -> ServeConfig:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return parse_config(
        {
            "device": "timed",
            "profile": str(profile),
            "input_shape": _SHAPE,
            "num_classes": 10,
            "model_name": _MODEL,
            "door_port": port,
            "policy": POLICY,
            "slo_ms": SLO_S * STRETCH * 1e3,
        }
    )
