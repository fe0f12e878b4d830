"""The `supernet` command: a table of verbs, each loaded from its package only when it is used.

`supernet --help` imports no verb at all, and `trace` or `simulate` never import torch or ray: a
verb that was not asked for is listed by its help line from the table.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer


class Verb(NamedTuple):
    """Where a verb lives: a function with annotated parameters, or a `typer.Typer` group."""

    module: str
    attribute: str
    help: str


VERBS: dict[str, Verb] = {
    "train": Verb("training.cli", "train", "Train a supernet and write its checkpoint folder."),
    "bootstrap": Verb(
        "training.commands.bootstrap_command",
        "bootstrap_command",
        "Make a supernet of a pretrained network.",
    ),
    "search": Verb(
        "training.commands.search_command", "search", "Find a supernet's Pareto subnets."
    ),
    "calibrate": Verb(
        "training.commands.calibrate_command", "calibrate", "Measure subnets on your data."
    ),
    "precision": Verb(
        "training.commands.precision_command", "precision", "Measure subnets in int8."
    ),
    "profile": Verb("subnetact.cli", "profile", "Measure the latency of every subnet here."),
    "serve": Verb(
        "serve.commands.serve_command", "serve", "Serve a checkpoint, on Ray or without."
    ),
    "top": Verb("serve.commands.top_command", "top", "Watch a server live."),
    "replay": Verb(
        "serve.commands.replay_command", "replay", "Replay a trace against a live server."
    ),
    "simulate": Verb(
        "traces.commands.simulate_command", "simulate_command", "Run the scheduler in virtual time."
    ),
    "plan": Verb(
        "serve.commands.plan_command", "plan_command", "Find the cheapest fleet for a promise."
    ),
    "trace": Verb("traces.cli", "trace_app", "Look at a trace, convert it, plot it."),
    "report": Verb("traces.cli", "report_command", "Compare runs on one page."),
    "bench": Verb("serve.bench.command", "bench_app", "Run one of the project's benchmarks."),
    "sweep": Verb(
        "traces.commands.sweep_command", "sweep_command", "Simulate a grid: loads x policies."
    ),
    "graph": Verb("supernet.graphs.command", "graph_app", "Make a graph folder, look at one."),
    "cost": Verb("supernet.cli", "cost", "Count the MACs and parameters of a subnet."),
    "import": Verb("supernet.cli", "import_", "Make a checkpoint of weights trained elsewhere."),
    "generate": Verb(
        "subnetact.generate_command", "generate", "Continue a prompt with a decoder, at any width."
    ),
    "export": Verb(
        "subnetact.export_command", "export", "Write a subnet as a state_dict or a program."
    ),
}


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the command with the one verb loaded that `arguments` ask for."""
    app = typer.Typer(
        name="supernet",
        help="Serve weight-shared supernets under latency deadlines.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    for name, verb in VERBS.items():
        target = _load(verb) if name == wanted else _unloaded
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=verb.help)
        else:
            app.command(name, help=None if name == wanted else verb.help)(target)
    return app


def main() -> None:
    """Run the command line."""
    build_app(sys.argv[1:])()


def _load(verb: Verb) -> Any:
    return getattr(importlib.import_module(verb.module), verb.attribute)


def _root() -> None:
    """Serve weight-shared supernets under latency deadlines."""


def _unloaded() -> None:
    raise AssertionError("only the verb that was asked for is run")


if __name__ == "__main__":
    main()
