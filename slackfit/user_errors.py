"""How a command of any package ends on an error that its user can mend: one line, exit code 2.

SlackFit has no command. This is here because the others may all import this package while none of
them could import a home higher up, and because it needs the standard library alone. `supernet`
imports nothing of ours and so keeps a twin (`supernet/cli.py`); a test holds the two equal.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

USAGE_ERROR = 2
"""The exit code of a command that was asked for something it can't do."""


@contextmanager
def user_errors(*kinds: type[Exception], prefix: str = "error") -> Generator[None]:
    """Turn errors of these kinds into the line `PREFIX: what happened` on stderr and exit code 2.

    Any other error is a fault of ours and keeps its traceback. Raises SystemExit, which no
    `except Exception` on the way out takes for one of its own.
    """
    try:
        yield
    except kinds as error:
        print(f"{prefix}: {error}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None
