"""The `supernet` command: which verbs load what, and how mistakes end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from serve.cli import VERBS, build_app

PROBE = """
import sys
from serve.cli import build_app
try:
    build_app(sys.argv[1:])(sys.argv[1:])
except SystemExit as end:
    loaded = [name for name in ("torch", "ray", "grpc", "pydantic", "numpy") if name in sys.modules]
    print("exit", end.code, "loaded", *loaded)
"""


def probe(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def run(*arguments: str):
    return CliRunner().invoke(build_app(arguments), arguments)


def test_help_lists_every_verb_and_loads_none():
    text = probe("--help")
    for name, verb in VERBS.items():
        assert name in text
        assert verb.help in text
    assert text.splitlines()[-1] == "exit 0 loaded"


@pytest.mark.alone
def test_help_takes_half_a_second():
    def once_s() -> float:
        start_s = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "serve", "--help"], capture_output=True, check=True, timeout=30
        )
        return time.perf_counter() - start_s

    assert min(once_s() for _ in range(3)) <= 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_loads_and_explains_itself(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"supernet {verb}" in result.output or f"root {verb}" in result.output


def test_trace_and_simulate_never_load_torch_or_ray(profile_file):
    for arguments in (
        ("trace", "info", "poisson:rate=10,duration=1"),
        ("simulate", "--profile", str(profile_file), "--trace", "poisson:rate=10,duration=1",
         "--slo-ms", "20"),
    ):  # fmt: skip
        last = probe(*arguments).splitlines()[-1]
        assert last.startswith("exit 0 loaded")
        assert not {"torch", "ray", "grpc"} & set(last.split())


def test_unknown_verb_is_refused():
    result = run("srve")
    assert result.exit_code == 2
    assert "srve" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "checkpoint is missing"),
        (["--checkpoint", "nowhere"], "checkpoint nowhere: no such folder"),
        (["--device", "timed", "--profile", "nowhere.json"], "profile nowhere.json: no such file"),
        (["--checkpoint", "x", "--set", "polcy=a"], "unknown setting polcy; known: checkpoint"),
        (["--checkpoint", "x", "--set", "polcy"], "'polcy', allowed key=value"),
        (["--checkpoint", "x", "--slo-ms", "-1"], "slo_ms"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_mistakes_in_serve_end_with_code_2_and_one_line(arguments, text):
    result = run("serve", "--no-ray", "--port", "0", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("supernet serve: ")
    assert text in line


def test_mistakes_in_replay_end_with_code_2(tmp_path):
    spec = ["--trace", "poisson:rate=5,duration=1", "--slo-ms", "50", "--out", str(tmp_path)]
    for arguments, text in (
        ([*spec, "--url", "http://127.0.0.1:9"], "no answer"),
        ([*spec, "--url", "nowhere"], "not a URL of a server; give http://"),
        (["--trace", "poison:rate=5", *spec[2:], "--url", "http://127.0.0.1:9"], "poison"),
    ):
        result = run("replay", *arguments)
        assert result.exit_code == 2
        assert text in result.stderr
