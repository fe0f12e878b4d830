"""The command that a report records, written from what was parsed: no option can be forgotten."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

import typer


def command_line(context: typer.Context, command: str, *, without: Collection[str] = ()) -> str:
    """Return the line that runs `command` again with the parameters of `context`.

    It holds what was given, in the order of `--help`; defaults, and the parameters named in
    `without` (outputs, which make no difference to what is reported), are left out.
    """
    words = shlex.split(command)
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in without or source is None or source.name == "DEFAULT":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            names = parameter.opts if value else parameter.secondary_opts
            words.append(_longest(names))
            continue
        for one in value if isinstance(value, list | tuple) else (value,):
            is_option = parameter.param_type_name == "option"
            words += [_longest(parameter.opts), _word(one)] if is_option else [_word(one)]
    return shlex.join(words)


def _longest(names: list[str]) -> str:
    return max(names, key=len)


def _word(value: Any) -> str:
    """Return a value as it is typed: `36` for 36.0, else with every digit that it has."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
