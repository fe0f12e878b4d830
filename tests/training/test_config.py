from __future__ import annotations

from pathlib import Path

import pytest

from training.config import ConfigError, load_config

TEXT = """
name = "x"
[supernet]
variant = "resnet_tiny"
[optimizer]
lr = 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "train.toml"
    file.write_text(TEXT)
    return file


def test_a_file_and_changes_make_a_config(path: Path) -> None:
    config = load_config(path, ["schedule.epochs=3", "data.name=digits", "amp=off"])
    assert config.optimizer.lr == 1.0
    assert config.schedule.epochs == 3
    assert config.amp == "off"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimiser.lr=1", "unknown key optimiser; known are supernet, name"),
        ("optimizer.lrr=1", "unknown key optimizer.lrr; known are optimizer.name, optimizer.lr"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast', expected float"),
        ("optimizer.lr=0", "optimizer.lr is 0.0, expected a number above 0"),
        ("schedule.epochs=1.5", "schedule.epochs is 1.5, expected int"),
        (
            "schedule.strategy=ofa",
            "schedule.strategy is 'ofa', allowed deps, sandwich",
        ),
        ("schedule.delay=2", "schedule.delay is 2.0, allowed 0 to 1"),
        ("optimizer.ema_decay=1", "optimizer.ema_decay is 1.0, allowed 0 to below 1"),
        ("data.name=folder", "data.name is folder: give data.path, an array folder"),
        ("data.name=images", "data.name is images: give data.path, a folder with train/CLASS/*"),
        ("data.augmentation=random_resized_crop", "only for data.name images; allowed here affine"),
        ("data.randaugment_magnitude=31", "data.randaugment_magnitude is 31, allowed 0 to 30"),
        ("schedule.focus=1", "schedule.focus is 1.0, allowed 0 to below 1"),
        ("schedule.parts=0", "schedule.parts is 0, expected a number above 0"),
        ("schedule.parts=999", "schedule.parts is 999, allowed up to data.batch_size, "),
        ("optimizer.warmup_epochs=inf", "optimizer.warmup_epochs is inf, expected a finite number"),
        ("schedule.ramp_epochs=inf", "schedule.ramp_epochs is inf, expected a finite number"),
        ("optimizer.lr=1" + "0" * 400, "optimizer.lr is inf, expected a finite number"),
        ("loss.label_smoothing=1.5", "loss.label_smoothing is 1.5, allowed 0 to 1"),
        ("optimizer.momentum=1", "optimizer.momentum is 1.0, allowed 0 to below 1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0, allowed 0 or more"),
        ("seed=-1", "seed is -1, allowed 0 or more"),
        ("threads=-1", "threads is -1, allowed 0 (torch's default) or more"),
        ("optimizer.name=lamb", "optimizer.name is 'lamb', allowed sgd, adamw"),
        ("loss.teacher=average", "loss.teacher is average: set optimizer.ema_decay above 0"),
        ("optimizer", "expected section.key=value"),
        ("name.x=1", "name is a value, not a section"),
        ("supernet=1", "supernet is 1, expected a section"),
    ],
)
def test_a_wrong_change_is_refused(path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(path, [change])
    assert message in str(error.value)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name =")
    with pytest.raises(ConfigError, match=r"bad.toml: not TOML"):
        load_config(tmp_path / "bad.toml")


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ConfigError, match="missing supernet"):
        load_config(tmp_path / "empty.toml")


def test_every_shipped_config_loads() -> None:
    recipes = {"bootstrap_cnn.toml", "bootstrap_vit.toml"}  # tests/training/bootstrap reads those
    shipped = sorted(p for p in Path("configs").glob("*.toml") if p.name not in recipes)
    assert shipped
    for path in shipped:
        load_config(path)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_graphs_are_trained_in_float32(amp: str) -> None:
    with pytest.raises(ConfigError, match=f"amp is {amp}, allowed auto or off"):
        load_config("configs/train_cora.toml", [f"amp={amp}"])
