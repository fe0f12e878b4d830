"""`python -m training`: the same as `supernet train`."""

import typer

from training.cli import train

typer.run(train)
