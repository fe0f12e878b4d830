"""`python -m serve` is the `supernet` command."""

from serve.cli import main

main()
