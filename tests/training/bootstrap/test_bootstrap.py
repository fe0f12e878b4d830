"""A bootstrap from end to end on generated images, and what it refuses before it trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from supernet import define_supernet, extract, load_checkpoint, save_checkpoint
from supernet.weights.import_network import imported_checkpoint
from training.bootstrap.bootstrap import bootstrap
from training.bootstrap.journal import JournalError, load_journal
from training.bootstrap.options import BootstrapOptions
from training.bootstrap.page import write_page
from training.bootstrap.recipe import CNN, VIT, read_recipe, recipe_of
from training.bootstrap.short_run import StepTimes, timed_steps
from training.bootstrap.start import PretrainedSource, check_samples, data_config, import_start
from training.config import ConfigError, config_from_json
from training.data.array_folder import ArraySplit, DataError, write_array_folder
from training.data.data import load_dataset
from training.run import train

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in colour and in a pattern; sorted by class."""
    folder = tmp_path_factory.mktemp("data") / "images"
    rng = np.random.default_rng(0)

    def split(per_class: int) -> ArraySplit:
        pixels = rng.integers(0, 120, (3, per_class, 3, 8, 8))
        for label in range(3):
            pixels[label, :, label] += 60
            pixels[label, :, :, label::3] += 40
        labels = np.repeat(np.arange(3), per_class)
        return ArraySplit(pixels.reshape(-1, 3, 8, 8).astype(np.uint8), labels)

    write_array_folder(folder, split(120), split(40), ("red", "green", "blue"))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights for five classes, as a network trained elsewhere."""
    definition = define_supernet("resnet_tiny", in_channels=3, num_classes=5)
    torch.manual_seed(0)
    net = definition.build()
    folder = tmp_path_factory.mktemp("weights") / "net"
    save_checkpoint(imported_checkpoint(definition, net.state_dict(), name="net"), folder)
    return folder


def options(weights: Path, data: Path, **changes: object) -> BootstrapOptions:
    source = PretrainedSource(str(weights), "supernet")
    given = {"source": source, "data": str(data), "minutes": 1.0, "batch_size": 16, "threads": 1}
    given |= changes
    return BootstrapOptions(**given)  # type: ignore[arg-type]


def run_training(config, out, resume):
    return train(config, out, resume=resume)


def test_a_network_of_other_classes_becomes_a_supernet_that_serves(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long on a busy machine as on an idle one: steps are said to take 0.6 s, in one minute.
    monkeypatch.setattr("training.bootstrap.bootstrap._FEWEST_STEPS", 3)
    monkeypatch.setattr("training.bootstrap.bootstrap.timed_steps", lambda *_: StepTimes(0.6, 0.6))
    monkeypatch.setattr("training.bootstrap.bootstrap._SEARCH", 0.005)
    said: list[str] = []
    out = tmp_path / "out"
    checkpoint = bootstrap(options(weights, images), out, run_training, tell=said.append)
    assert checkpoint is not None
    loaded = load_checkpoint(out)
    assert loaded.classes == ("red", "green", "blue")
    assert max(s.accuracy for s in loaded.subnets) > 0.9
    journal = load_journal(out)
    assert not journal.knows_classes
    assert [row["macs"] for row in journal.before] == sorted(row["macs"] for row in journal.before)
    assert max(row["accuracy"] for row in journal.before) < 0.7
    assert len(journal.rates) == 3
    best = max(journal.rates, key=lambda tried: tried["accuracy"])
    assert journal.config["optimizer"]["lr"] == best["lr"]
    assert not (out / "try").exists()
    page = write_page(out, loaded, journal, "supernet bootstrap <net>").read_text()
    assert page.count("<svg") == 2
    assert "&lt;net&gt;" in page
    with pytest.raises(JournalError, match="already holds a bootstrap"):
        bootstrap(options(weights, images), out, run_training)
    with pytest.raises(JournalError, match=r"minutes: 1.0 then, 3.0 now"):
        bootstrap(options(weights, images, minutes=3.0), out, run_training, resume=True)


@pytest.mark.slow
def test_a_killed_bootstrap_goes_on_where_it_was(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    """kill -9 in the middle of training; what was measured before is not measured again."""
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "serve", "bootstrap", str(weights), "--from", "supernet",
        "--data", str(images), "--out", str(out), "--minutes", "0.5", "--batch-size", "16",
        "--threads", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    try:
        for _ in range(600):
            if (out / "resume.safetensors").exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    finally:
        process.kill()
    before = load_journal(out)
    assert before.config
    done = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_journal(out).before == before.before
    assert (out / "report.html").exists()
    assert load_checkpoint(out).subnets


def test_a_network_that_knows_the_classes_teaches_from_the_start(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    data = load_dataset(data_config(images, PretrainedSource(str(weights), "supernet")))
    start = import_start(PretrainedSource(str(weights), "supernet"), data)
    assert start.classes == data.classes
    assert start.definition.config.num_classes == 3
    assert start.permutation is None  # a supernet keeps its order


@pytest.mark.alone
def test_a_step_of_all_sizes_takes_longer_than_one_of_the_whole_network(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    source = PretrainedSource(str(weights), "supernet")
    data = load_dataset(data_config(images, source))
    save_checkpoint(import_start(source, data), tmp_path / "start")
    config = config_from_json({
        "supernet": {
            "variant": "resnet_tiny", "weights": str(tmp_path / "start"), "origin": "supernet",
        },
        "data": {"name": "folder", "path": str(images), "batch_size": 16},
        "schedule": {"parts": 1}, "threads": 1,
    })  # fmt: skip
    times = timed_steps(config, data, tmp_path / "try")
    assert 0 < times.alone_s < times.all_s
    assert times.mean_s(0.25) == pytest.approx(0.25 * times.alone_s + 0.75 * times.all_s)
    assert not (tmp_path / "try").exists()


def test_recipes_in_configs_are_the_built_in_ones() -> None:
    for recipe, name in ((CNN, "bootstrap_cnn"), (VIT, "bootstrap_vit")):
        path = REPOSITORY / "configs" / f"{name}.toml"
        assert asdict(read_recipe(path)) == asdict(recipe)
        assert set(tomllib.loads(path.read_text())) == set(asdict(recipe))
    assert recipe_of(define_supernet("resnet_tiny")) == CNN
    assert recipe_of(define_supernet("vit_tiny_patch16_224")) == VIT


def test_a_recipe_with_an_unknown_key_or_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("rate = 1.0\n")
    with pytest.raises(ConfigError, match="unknown key rate; known are optimizer, lr"):
        read_recipe(path)
    path.write_text('lr = "fast"\n')
    with pytest.raises(ConfigError, match="lr is 'fast', expected a number"):
        read_recipe(path)


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 4, "b": 4}, "training samples besides those held out, at least 16"),
        ({"a": 40, "b": 1}, "no sample of class b is left to train on"),
    ],
)
def test_data_that_nothing_can_be_trained_on_are_refused_in_a_sentence(
    tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    root = folder_of(tmp_path / "images", counts)
    # A lone image is held out by some draws, and missing from what is held out by the others.
    refused: list[str] = []
    for seed in range(12):
        data = load_dataset(
            data_config(root, PretrainedSource("resnet18", "timm", resolution=8)), seed
        )
        try:
            told = check_samples(data)
        except DataError as error:
            refused.append(str(error))
        else:
            assert [text.partition(" is held out")[2] != "" for text in told] == [True]
    assert refused
    assert all(message in text for text in refused)


def test_grey_networks_do_not_take_coloured_images(images: Path, tmp_path: Path) -> None:
    definition = define_supernet("resnet_tiny")
    grey = imported_checkpoint(definition, definition.build().state_dict(), name="grey")
    save_checkpoint(grey, tmp_path / "grey")
    source = PretrainedSource(str(tmp_path / "grey"), "supernet")
    with pytest.raises(DataError, match="images of 3 channels, the network takes 1"):
        import_start(source, load_dataset(data_config(images, source)))


def test_foreign_weights_are_sorted_by_what_their_channels_carry(
    images: Path, tmp_path: Path
) -> None:
    """One's own file of a torchvision network; its function stays what it was."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    source = PretrainedSource(
        "resnet18", "torchvision", weights=str(tmp_path / "mine.pth"), resolution=32
    )
    start = import_start(source, load_dataset(data_config(images, source)))
    assert start.permutation is not None
    assert any(order != sorted(order) for order in start.permutation.values())
    assert start.definition.space.largest.resolution == 32
    assert start.definition.config.num_classes == 3
    largest = start.definition.space.largest
    ours = extract(start.state, start.definition, largest, start.norm_statistics[largest.subnet_id])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = ours.forward_features(x).mean((2, 3))  # type: ignore[operator]
        without_head = torch.nn.Sequential(*list(net.children())[:-1], torch.nn.Flatten())
        permuted = without_head(x)[:, start.permutation["layer4.stream"]]
    torch.testing.assert_close(features, permuted, atol=1e-4, rtol=1e-4)


def test_a_resolution_that_the_family_does_not_take_is_refused(images: Path) -> None:
    source = PretrainedSource("minilm_l6", "timm", resolution=32)
    with pytest.raises(ValueError, match="minilm_l6 takes none but its own"):
        import_start(source, load_dataset(data_config(images, source)))


def test_wrong_options_are_refused_by_the_command(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve", "bootstrap", "resnet18", "--from", "keras",
               "--data", str(images), "--out", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 2
    assert "--from keras: allowed timm, torchvision, ofa, huggingface, supernet" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="minutes is 0, expected a number above 0"):
        options(Path("w"), images, minutes=0)
    with pytest.raises(ValueError, match="minutes is inf, expected a finite number"):
        options(Path("w"), images, minutes=float("inf"))
    assert json.dumps(asdict(options(Path("w"), images)))
