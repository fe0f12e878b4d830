"""`python -m traces`: the verbs of this package."""

from traces.cli import app

if __name__ == "__main__":
    app(prog_name="python -m traces")
