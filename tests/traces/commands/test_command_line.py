"""The command of a report says every option that was given, and parses to the same again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from serve.cli import build_app
from serve.commands.replay_command import replay
from serve.demo import demo
from traces.cli import app
from traces.commands.command_line import command_line
from traces.commands.simulate_command import OUTPUTS, simulate_command

COMMANDS = {
    "supernet simulate": (simulate_command, OUTPUTS),
    "supernet replay": (replay, ()),
    "python -m serve.demo": (demo, ()),
}
# Long enough that fewer digits, or no quotes, would show.
VALUES = {int: "17", float: "36.1234567890125", str: "a b's $c", Path: "my dir/x"}


def command_of(function: Any) -> Any:
    single = typer.Typer(add_completion=False)
    single.command()(function)
    return typer.main.get_command(single)


def parsed(function: Any, words: list[str]) -> Any:
    return command_of(function).make_context("x", words)


def every_option(function: Any) -> list[str]:
    """Return words that give every parameter of a command another value than its default."""
    words: list[str] = []
    kinds = get_type_hints(function)
    for parameter in command_of(function).params:
        kind = kinds[parameter.name]
        (kind,) = {*(get_args(kind) or (kind,))} - {type(None)}
        if kind is bool:
            words.append((parameter.secondary_opts or parameter.opts)[-1])
        else:
            words += [parameter.opts[0], VALUES[kind]]
    return words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_recorded_and_parses_to_the_same(command: str):
    function, outputs = COMMANDS[command]
    context = parsed(function, every_option(function))
    for parameter in context.command.params:
        assert context.params[parameter.name] != parameter.default, parameter.name
    words = shlex.split(command_line(context, command, without=outputs))
    start = len(command.split())
    assert words[:start] == command.split()
    again = parsed(function, words[start:])
    differing = {name for name, value in context.params.items() if again.params[name] != value}
    assert differing == set(outputs)


def test_defaults_are_left_out_and_whole_numbers_are_short():
    words = ["--profile", "p.json", "--trace", "poisson:rate=1,duration=2", "--slo-ms", "36.0"]
    context = parsed(simulate_command, [*words, "--no-drop-hopeless"])
    assert command_line(context, "supernet simulate") == (
        "supernet simulate --profile p.json --trace poisson:rate=1,duration=2 --slo-ms 36 "
        "--no-drop-hopeless"
    )


def test_a_list_is_repeated_and_an_argument_has_no_name():
    def verb(
        context: typer.Context,
        runs: list[str],
        some: Annotated[list[int] | None, typer.Option()] = None,
        one: int = 1,
    ) -> None:
        """Parsed only."""

    context = parsed(verb, ["a b", "c", "--some", "1", "--some", "2"])
    words = shlex.split(command_line(context, "x"))
    assert parsed(verb, words[1:]).params == context.params


@pytest.mark.parametrize("build", [lambda words: build_app(words), lambda _: app])
def test_a_report_made_again_by_its_own_command_has_the_same_bytes(build, tmp_path: Path):
    profile = str(Path("profiles/superserve_resnet_2080ti.json").resolve())
    words = ["simulate", "--profile", profile, "--trace", "gamma:rate=400,cv2=2,duration=1"]
    words += ["--policy", "drainfit", "--slo-ms", "36.5", "--overhead-ms", "0.25", "--bound"]
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    done = CliRunner().invoke(build(words), [*words, "--json", str(first)])
    assert done.exit_code == 0, done.output
    (report,) = json.loads(first.read_text())
    _, *repeated = shlex.split(report["command"])
    done = CliRunner().invoke(build(repeated), [*repeated, "--json", str(again)])
    assert done.exit_code == 0, done.output
    assert first.read_bytes() == again.read_bytes()
