"""A GPU machine may have neither Ray nor pydantic: what runs there must not import them."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = ("ray", "pydantic", "starlette", "uvicorn", "fastapi")

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


def test_the_block_of_these_tests_blocks() -> None:
    program = PROGRAM.format(blocked=BLOCKED, modules="pydantic")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pydantic is not installed here" in ended.stderr
