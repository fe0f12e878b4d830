"""`python -m supernet VERB`: cost, import and export without the other packages."""

import typer

from supernet.cli import cost, export, import_

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command("cost")(cost)
app.command("import")(import_)
app.command("export")(export)
app()
