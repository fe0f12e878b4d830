"""What a training tells before it begins."""

from pathlib import Path

import pytest

from subnetact import device
from training.run import train


@pytest.mark.parametrize(
    ("amp", "flags", "told"),
    [
        ("bf16", "fma avx2", True),
        ("bf16", "avx512f avx512_bf16", False),
        ("auto", "fma avx2", False),
        ("off", "fma avx2", False),
    ],
)
def test_emulated_bf16_is_told(amp, flags, told, make_config, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags.split()))
    doubts: list[str] = []
    train(make_config(amp=amp), tmp_path / "run", tell=doubts.append, should_stop=lambda: True)
    assert [d.startswith("amp is bf16, which ") for d in doubts] == [True] * told


@pytest.mark.parametrize("limit", [0, 4])
def test_classes_without_a_training_sample_are_told(limit, make_config, tmp_path: Path):
    doubts: list[str] = []
    config = make_config(data={"limit": limit, "batch_size": 4})
    train(config, tmp_path / "run", tell=doubts.append, should_stop=lambda: True)
    told = [doubt for doubt in doubts if doubt.startswith("no sample of class ")]
    assert len(told) == bool(limit)
    assert all("is left to train on" in doubt for doubt in told)
