"""A log of calls: JSON lines, a header first, then each call with its arguments and result.

Numbers survive unchanged (Python writes the shortest text that reads back as the same float). Fed
to a fresh object, the same calls must give the same results; the first one that does not is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

_Result = TypeVar("_Result")


class LogError(ValueError):
    """A log is malformed, or was recorded with other settings than the scheduler's."""


class ReplayDifferenceError(AssertionError):
    """A replayed call did not do what was recorded; `line` is its number in the log, from 1."""

    def __init__(self, line: int, call: object, recorded: object, replayed: object) -> None:
        self.line = line
        self.call = call
        self.recorded = recorded
        self.replayed = replayed
        super().__init__(
            f"line {line}: {json.dumps(call)} gave {json.dumps(replayed)}, "
            f"recorded was {json.dumps(recorded)}"
        )


class TextSink(Protocol):
    """Where a recorder writes: an open text file, say."""

    def write(self, text: str, /) -> object: ...


class CallRecorder:
    """Writes calls down; what a call does by other calls is not written."""

    def __init__(self, sink: TextSink, faults: tuple[type[Exception], ...]) -> None:
        """Write to `sink`, which the caller owns; `faults` of a call are a result of it."""
        self._sink = sink
        self._faults = faults
        self._is_within_call = False

    def write(self, line: Mapping[str, object]) -> None:
        """Write one line."""
        self._sink.write(json.dumps(line, separators=(",", ":")) + "\n")

    def do(self, call: str, method: Callable[..., _Result], *args: object) -> _Result:
        """Call `method`, write what came of it, and return or raise that."""
        if self._is_within_call:
            return method(*args)
        line: dict[str, object] = {"call": call, "args": args}
        self._is_within_call = True
        try:
            result = method(*args)
        except self._faults as error:
            self.write({**line, "error": _describe(error)})
            raise
        finally:
            self._is_within_call = False
        self.write({**line, "result": result})
        return result

    def unwritten(self, method: Callable[..., _Result], *args: Any, **named: Any) -> _Result:
        """Call `method` without writing that, nor what it calls."""
        self._is_within_call = True
        try:
            return method(*args, **named)
        finally:
            self._is_within_call = False


def replay_calls(
    log: str | Path | Iterable[str],
    methods: Mapping[str, Callable[..., object]],
    header: Mapping[str, object],
    faults: tuple[type[Exception], ...],
) -> int:
    """Make the recorded calls by `methods`; return how many agreed.

    `log` is a path or the lines; `header` is what its first line must say. Raises
    ReplayDifferenceError at the first call that does something else, and LogError for a malformed
    log or another header.
    """
    if isinstance(log, (str, Path)):
        with Path(log).open(encoding="utf-8") as lines:
            return replay_calls(lines, methods, header, faults)
    numbered = enumerate(log, start=1)
    _check_header(_parse(*next(numbered, (1, ""))), header)
    count = 0
    for number, text in numbered:
        line = _parse(number, text)
        recorded = {key: line[key] for key in ("result", "error") if key in line}
        if not recorded or not isinstance(line.get("args"), list):
            raise LogError(f"line {number}: a call needs call, args, and result or error")
        if line.get("call") not in methods:
            allowed = ", ".join(methods)
            raise LogError(
                f"line {number}: call {line.get('call')!r} is unknown, allowed {allowed}"
            )
        replayed = _outcome_of(methods[line["call"]], line["args"], faults)
        if replayed != recorded:
            call = {"call": line["call"], "args": line["args"]}
            raise ReplayDifferenceError(number, call, recorded, replayed)
        count += 1
    return count


def _outcome_of(
    method: Callable[..., object], args: list[Any], faults: tuple[type[Exception], ...]
) -> dict[str, Any]:
    try:
        result = {"result": method(*args)}
    except LogError:
        raise
    except faults as error:
        result = {"error": _describe(error)}
    return json.loads(json.dumps(result))  # tuples become lists, as in the log


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_header(found: Mapping[str, Any], header: Mapping[str, object]) -> None:
    for key, value in header.items():
        if found.get(key) != value:
            raise LogError(
                f"line 1: the log was recorded with {key} {found.get(key)!r}, "
                f"the scheduler has {value!r}"
            )


def _parse(number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise LogError(f"line {number}: not JSON ({error})") from None
    if not isinstance(line, dict):
        raise LogError(f"line {number}: expected a JSON object, got {text.strip()}")
    return cast("dict[str, Any]", line)
