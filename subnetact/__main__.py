"""`python -m subnetact`: the same as `supernet profile`."""

import typer

from subnetact.cli import profile

typer.run(profile)
