"""What the processor says of itself."""

import os
import subprocess
import sys

import pytest

from subnetact import device


@pytest.mark.parametrize(
    ("flags", "has", "fast"),
    [
        ("fma avx2", False, False),
        ("avx512f avx512_vnni avx512_bf16", True, False),  # convolutions may be slower there
        ("avx512_bf16 amx_bf16 amx_tile", True, True),
    ],
)
def test_bf16_is_fast_where_there_are_tiles(flags, has, fast, monkeypatch):
    monkeypatch.setattr(device, "_cpu_info", lambda key: flags if key == "flags" else None)
    assert device.has_bf16("cpu") is has
    assert device.has_fast_bf16("cpu") is fast
    assert device.cpu_flags() == frozenset(flags.split())


def test_no_flags_are_no_error(monkeypatch):
    monkeypatch.setattr(device, "_cpu_info", lambda key: None)
    assert device.cpu_flags() == frozenset()
    assert not device.has_bf16("cpu")
    assert not device.has_fast_bf16("cpu")


@pytest.mark.parametrize(("given", "kept"), [(None, "16384"), ("77", "77")])
def test_onednn_keeps_more_primitives_unless_told_otherwise(given, kept):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    environment = {key: value for key, value in os.environ.items() if key != name}
    ran = subprocess.run(
        [sys.executable, "-c", f"import os, subnetact.device; print(os.environ['{name}'])"],
        env=environment if given is None else {**environment, name: given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == kept
