"""A GPU machine may have neither Ray nor pydantic: what runs there must not import them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = ("ray", "pydantic", "starlette", "uvicorn", "fastapi")
NOT_FOR_TRAINING = (*BLOCKED, "typer", "hypothesis", "onnx", "onnxruntime", "numba")

PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Blocked())
import {modules}
"""


@pytest.mark.parametrize(
    "modules",
    [
        "serve.engine.engine, serve.engine.runner, serve.engine.under_way",
        "serve.models.deadline, serve.models.limits, serve.observe.metrics",
        "subnetact.cli, subnetact.profiling.profiler",
        "subnetact.cuda.cuda_accelerator, subnetact.cuda.cuda_executor",
        "serve.bench.gpu.__main__, training.trainer.trainer, training.trainer.distributed",
        "traces.open_loop.replay",
    ],
)
def test_what_runs_on_a_gpu_machine_imports_without_ray_and_pydantic(modules: str) -> None:
    program = PROGRAM.format(blocked=BLOCKED, modules=modules)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_tests_of_a_gpu_are_read_where_there_is_little_beside_torch() -> None:
    """A file that can't be imported ends pytest before any test: so only this one is named."""
    page = Path("docs/actuation.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"python3 -m pytest -m gpu (\S+)", page)
    marked = [
        str(path)
        for path in Path("tests/subnetact").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8") and path.name != "test_imports.py"
    ]
    assert marked == [named]
    module = named.removesuffix(".py").replace("/", ".")
    program = PROGRAM.format(
        blocked=NOT_FOR_TRAINING, modules=f"tests.conftest, tests.subnetact.conftest, {module}"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_block_of_these_tests_blocks() -> None:
    program = PROGRAM.format(blocked=BLOCKED, modules="pydantic")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pydantic is not installed here" in ended.stderr
