"""`python -m supernet`: the same as `supernet cost`."""

import typer

from supernet.cli import cost

typer.run(cost)
