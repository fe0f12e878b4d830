"""One's own fine-tuned timm or torchvision network, other classes, and weights that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from typer.testing import CliRunner

from serve.cli import build_app
from supernet import define_supernet, extract, load_checkpoint, save_checkpoint
from supernet.weights.expected_input import input_of
from supernet.weights.import_weights import import_supernet
from supernet.weights.weight_files import WeightsError, read_tensors


def run(*arguments: object):
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(build_app(words), words)


def own_network(origin: str, name: str, num_classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if origin == "timm":
        return timm.create_model(name, num_classes=num_classes).eval()
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes).eval()


@pytest.mark.parametrize(
    ("origin", "name", "classifier"),
    [
        ("timm", "resnet18", "fc"),
        ("timm", "mobilenetv3_small_100", "classifier"),
        ("timm", "vit_tiny_patch16_224", "head"),
        ("torchvision", "resnet18", "fc"),
    ],
)
def test_ones_own_file_of_a_named_network_is_read(
    origin: str, name: str, classifier: str, tmp_path: Path
) -> None:
    net = own_network(origin, name, 7)
    compiled = {f"_orig_mod.{n}": t for n, t in net.state_dict().items()}
    torch.save({"epoch": 1, "model": compiled}, tmp_path / "my.pth")
    done = run("import", name, "--from", origin, "--weights", tmp_path / "my.pth",
               "--no-sort", "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.num_classes == 7, "as many as the file's classifier"
    assert checkpoint.provenance == {"origin": origin, "source": name, "weights": "my.pth"}
    largest = checkpoint.definition.space.largest
    ours = extract(checkpoint.state, checkpoint.definition, largest,
                   checkpoint.norm_statistics[largest.subnet_id])  # fmt: skip
    size = 224 if name.startswith("vit") else 64
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), net(x), atol=1e-4, rtol=1e-4)
    # Starting a training on other classes draws the classifier, and only that.
    definition, state = import_supernet(
        name, origin=origin, weights=tmp_path / "my.pth", new_head=True, num_classes=3
    )
    assert state[f"{classifier}.weight"].shape[0] == definition.config.num_classes == 3
    assert state[f"{classifier}.weight"].std() > 0.01


def test_a_file_is_no_name_and_a_name_is_no_file(tmp_path: Path) -> None:
    torch.save(own_network("timm", "resnet18", 5).state_dict(), tmp_path / "my.pth")
    done = run("import", tmp_path / "my.pth", "--from", "timm", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "say which supernet" in done.output
    done = run("import", tmp_path / "my.pth", "--from", "timm", "--supernet", "resnet18",
               "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert load_checkpoint(tmp_path / "out").num_classes == 5
    done = run("import", tmp_path / "my.pth", "--from", "cifar_resnet", "--supernet", "resnet18",
               "--weights", tmp_path / "my.pth", "--out", tmp_path / "other")  # fmt: skip
    assert done.exit_code == 2
    assert "belong to a model of timm or torchvision" in done.output


def test_half_precision_is_stored_in_single(tmp_path: Path) -> None:
    net = own_network("timm", "resnet18", 4).half()
    save_file(net.state_dict(), tmp_path / "my.safetensors")
    _, state = import_supernet("resnet18", origin="timm", weights=tmp_path / "my.safetensors")
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("origin", ["timm", "supernet"])
def test_numbers_that_are_not_finite_are_listed_and_refused(origin: str, tmp_path: Path) -> None:
    if origin == "timm":
        broken = own_network("timm", "resnet18", 10).state_dict()
        broken["fc.bias"][3:5] = torch.tensor([float("nan"), float("-inf")])
        broken["bn1.running_var"][0] = float("inf")
        torch.save(broken, tmp_path / "w.pth")
        given = ("resnet18", "--from", "timm", "--weights", tmp_path / "w.pth")
    else:
        from supernet.weights.import_network import imported_checkpoint

        definition = define_supernet("resnet18", num_classes=10)
        state = definition.build().state_dict()
        state["fc.bias"][3:5] = torch.tensor([float("nan"), float("-inf")])
        state["bn1.running_var"][0] = float("inf")
        whole = imported_checkpoint(definition, state, name="resnet18", sort=False)
        save_checkpoint(whole, tmp_path / "folder")
        given = (tmp_path / "folder", "--from", "supernet")
    done = run("import", *given, "--out", tmp_path / "out")
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "fc.bias (1 NaN and 1 infinite of 10)" in said
    assert "bn1.running_var (0 NaN and 1 infinite of 64)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "expected weight_map, an object"),
        ('{"weight_map": []}', "expected weight_map, an object"),
        ('{"weight_map": {"a": 3}}', "must name a file, as text"),
        ("[1]", "expected a JSON object, got list"),
        ("{", "not JSON"),
        ('{"weight_map": {"a": "../up.safetensors"}}', "outside the folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: no such file"),
        ('{"weight_map": {"b": "part.safetensors"}}', "names b, which no file holds"),
    ],
)
def test_a_malformed_index_is_named(index: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(index)
    save_file({"a": torch.ones(1)}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=message) as refused:
        read_tensors(tmp_path)
    assert tmp_path.name in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "sizes of the network must be numbers"),
        ({"hidden_size": 0}, "sizes of the network must be numbers"),
        ({"num_attention_heads": None}, "sizes of the network must be numbers"),
        ({"layer_norm_eps": [1]}, "sizes of the network must be numbers"),
    ],
)
def test_a_malformed_config_is_named(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    config = {
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": 32, "num_attention_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 10,
        "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(WeightsError, match=message):
        import_supernet(tmp_path, origin="huggingface")


@pytest.mark.parametrize(
    ("origin", "name", "mean", "std", "crop", "interpolation"),
    [
        ("timm", "resnet18", 0.485, 0.229, 0.95, "bicubic"),
        ("timm", "vit_tiny_patch16_224", 0.5, 0.5, 0.9, "bicubic"),
        ("timm", "deit_tiny_patch16_224", 0.485, 0.229, 0.9, "bicubic"),
        ("timm", "tf_efficientnet_lite0", 0.5, 0.5, 0.875, "bicubic"),
        ("torchvision", "resnet18", 0.485, 0.229, 0.875, "bilinear"),
        ("torchvision", "resnet50", 0.485, 0.229, 224 / 232, "bilinear"),
    ],
)
def test_the_input_is_what_the_publishers_say(
    origin: str, name: str, mean: float, std: float, crop: float, interpolation: str
) -> None:
    spec = input_of(define_supernet(name), name, origin)
    assert (spec.mean[0], spec.std[0]) == (mean, std)
    assert spec.crop == pytest.approx(crop)
    assert spec.interpolation == interpolation
    assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_an_input_that_says_nothing_of_crops_has_the_json_it_had() -> None:
    spec = input_of(define_supernet("resnet20_cifar_a"), "resnet20_cifar_a", "cifar_resnet")
    assert set(spec.to_json()) == {"channels", "height", "width", "mean", "std"}
    with pytest.raises(ValueError, match=r"crop is 1\.5, allowed above 0 to 1"):
        type(spec).from_json({**spec.to_json(), "crop": 1.5})
    with pytest.raises(ValueError, match="interpolation is 'magic', allowed nearest"):
        type(spec).from_json({**spec.to_json(), "interpolation": "magic"})
