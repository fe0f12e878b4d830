"""What a process and its children hold in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serve.bench.process_tree import children, tree_bytes

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="Linux alone has it")


def test_a_child_counts_while_it_runs():
    before = tree_bytes(os.getpid())
    assert before > 2**20
    script = "block = bytearray(1 << 26); print(len(block), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        assert process.pid in children(os.getpid())
        assert tree_bytes(process.pid) > 2**26
        assert tree_bytes(os.getpid()) > before + 2**25
        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()
    assert process.pid not in children(os.getpid())
    assert tree_bytes(process.pid) == 0
