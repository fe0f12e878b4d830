"""Numba's `njit` in the three forms that the scheduler's kernels have."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from slackfit.compiled.code_cache import code_folder, kept

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Counting references of the state's arrays at every call would take longer than the work itself,
# and a door to Python for each function more than half of the compilation.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
_NO_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def compiled(function: _Function) -> _Function:
    """Return `function` as machine code that other machine code calls, never Python.

    It must allocate nothing, since references are not counted; division by zero gives inf or nan
    there, so nothing may rely on its exception.
    """
    numba: Any = import_module("numba")
    return numba.njit(**_OPTIONS, **_NO_WRAPPERS)(function)


def inlined(function: _Function) -> _Function:
    """Return the same, made part of its callers: for what is short, or has one caller."""
    numba: Any = import_module("numba")
    return numba.njit(forceinline=True, **_OPTIONS, **_NO_WRAPPERS)(function)


def entry(function: _Function) -> _Function:
    """Return machine code that Python calls, with all that it calls, from the cache if it can."""
    # All of SlackFit's sources: kernels take constants from the vocabulary too.
    return kept(function, code_folder("compiled", Path(__file__).parents[1]), **_OPTIONS)
