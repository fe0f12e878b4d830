"""Weights out, and the two commands: what is written is read back and computes the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

from serve.cli import build_app
from supernet import define_supernet, extract, load_checkpoint
from supernet.weights.export_weights import ExportError, export_subnet, origin_state, write_state
from supernet.weights.import_weights import import_supernet
from supernet.weights.naming import find_naming
from supernet.weights.weight_files import read_tensors

PROGRAMS = [
    ("resnet_tiny", {}),
    ("tf_efficientnet_lite0", {"num_classes": 10}),
    ("vit_tiny_patch16_224", {"num_classes": 10, "resolution": 32}),
    ("bert_tiny", {"vocab_size": 100, "num_tokens": 12}),
]


def run(*arguments: str | Path):
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(build_app(words), words)


@pytest.mark.parametrize("format", ["torch_export", "torchscript", "onnx"])
@pytest.mark.parametrize(("name", "overrides"), PROGRAMS)
def test_a_program_computes_what_the_subnet_computes(
    name: str, overrides: dict[str, int], format: str, tmp_path: Path
) -> None:
    if format == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed: pip install 'supernet-serving[onnx]'")
    definition = define_supernet(name, **overrides)
    arch = definition.space.smallest
    net = definition.build(arch).eval()
    deviation = export_subnet(net, definition.example_input(arch, 2), tmp_path / "m", format)
    assert deviation < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_program_takes_any_batch_size(tmp_path: Path) -> None:
    definition = define_supernet("resnet_tiny")
    net = definition.build(definition.space.smallest).eval()
    export_subnet(net, torch.randn(2, 1, 8, 8), tmp_path / "m.pt2", "torch_export")
    program = torch.export.load(tmp_path / "m.pt2").module()
    x = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(program(x), net(x))


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    definition = define_supernet("resnet_tiny")
    net = definition.build(definition.space.smallest).eval()
    with pytest.raises(ExportError, match="format is 'caffe', allowed state_dict, torch_export"):
        export_subnet(net, torch.randn(2, 1, 8, 8), tmp_path / "m", "caffe")
    with pytest.raises(RuntimeError):
        export_subnet(net, torch.randn(2, 3, 8, 8), tmp_path / "m", "torchscript")
    assert not list(tmp_path.iterdir())


@torch.inference_mode()
def test_a_subnet_of_timms_shapes_loads_into_timm(tmp_path: Path) -> None:
    definition = define_supernet("vit_tiny_patch16_224", num_classes=10, resolution=32)
    net = definition.build().eval()
    arch = definition.space.uniform(depth=6)
    written = origin_state(net.state_dict(), definition, arch, "timm")
    write_state(written, tmp_path / "vit.safetensors")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=6).eval()
    theirs.load_state_dict(read_tensors(tmp_path / "vit.safetensors"), strict=True)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = extract(net.state_dict(), definition, arch)
    torch.testing.assert_close(theirs(x), ours(x), atol=1e-4, rtol=1e-4)


def test_the_whole_supernet_has_a_place_in_ofas_files_only(tmp_path: Path) -> None:
    definition = define_supernet("resnet_tiny")
    state = definition.build().state_dict()
    assert origin_state(state, definition, None, "supernet").keys() == state.keys()
    with pytest.raises(ExportError, match="timm cannot hold a whole supernet"):
        origin_state(state, definition, None, "timm")


@torch.inference_mode()
def test_import_then_export_by_command_gives_the_same_function(tmp_path: Path) -> None:
    definition = define_supernet("resnet20_cifar_a")
    net = definition.build().eval()
    naming = find_naming("cifar_resnet", "resnet")
    write_state(naming.to_origin(net.state_dict(), definition), tmp_path / "in.pth")
    name, folder, out = "resnet20_cifar_a", tmp_path / "ckpt", tmp_path / "out.pth"
    done = run(
        *("import", tmp_path / "in.pth", "--from", "cifar_resnet", "--supernet", name),
        *("--out", folder, "--accuracy", "0.9173"),
    )
    assert done.exit_code == 0, done.output
    checkpoint = load_checkpoint(folder)
    assert checkpoint.permutation is not None
    assert [s.accuracy for s in checkpoint.subnets] == [0.9173]
    done = run("export", "--checkpoint", folder, "--out", out, "--naming", "cifar_resnet")
    assert done.exit_code == 0, done.output
    _, state = import_supernet(out, origin="cifar_resnet", supernet=name)
    again = extract(state, definition, definition.space.largest)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x), net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "cifar_resnet"), "say which supernet"),
        (("--from", "caffe", "--supernet", "resnet18"), "resnet has no naming of 'caffe'"),
        (("--from", "timm", "--supernet", "resnet19"), "unknown supernet 'resnet19'"),
        (("--from", "timm", "--supernet", "resnet18"), "unexpected linear.weight"),
    ],
)
def test_a_refused_import_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"linear.weight": torch.zeros(1)}
    monkeypatch.setattr("supernet.weights.import_weights._read", lambda source, origin: wrong)
    done = run("import", tmp_path / "in.pth", *arguments, "--out", tmp_path / "ckpt")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "ckpt").exists()


def test_further_subnets_need_statistics_where_there_is_batch_norm(tmp_path: Path) -> None:
    definition = define_supernet("resnet20_cifar_a")
    naming = find_naming("cifar_resnet", "resnet")
    state = naming.to_origin(definition.build().state_dict(), definition)
    write_state(state, tmp_path / "in.pth")
    done = run(
        *("import", tmp_path / "in.pth", "--from", "cifar_resnet", "--out", tmp_path / "ckpt"),
        *("--supernet", "resnet20_cifar_a", "--subnets", "3"),
    )
    assert done.exit_code == 2
    assert "smaller subnets need statistics" in done.output


def test_a_transformer_serves_a_ladder_at_once(tmp_path: Path) -> None:
    from supernet import save_checkpoint
    from supernet.weights.import_network import imported_checkpoint

    definition = define_supernet("bert_tiny", vocab_size=50, num_tokens=8)
    state = definition.build().state_dict()
    ladder = definition.space.ladder()
    save_checkpoint(
        imported_checkpoint(definition, state, name="bert_tiny", archs=ladder), tmp_path
    )
    loaded = load_checkpoint(tmp_path)
    assert set(loaded.subnet_ids) == {arch.subnet_id for arch in ladder}
    assert loaded.input.kind == "tokens"
    ids = loaded.input.normalise(torch.zeros(2, 1, 1, 8, dtype=torch.int32), 8)
    assert ids.shape == (2, 8)
    assert ids.dtype == torch.int64
