"""State dicts as people save them: compiled, wrapped, averaged, an attribute of something else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet import SupernetDefinition, define_supernet
from supernet.weights.import_weights import import_state, import_supernet
from supernet.weights.naming import State, find_naming
from supernet.weights.weight_files import WeightsError, read_tensors
from supernet.weights.wrapped_names import without_prefix, without_wrappers

NAMING = find_naming("cifar_resnet", "resnet")
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
OUTER = ("model.", "net.", "student.backbone.", "ema_model.")


@pytest.fixture(scope="module")
def definition() -> SupernetDefinition:
    return define_supernet("resnet20_cifar_a")


@pytest.fixture(scope="module")
def plain(definition: SupernetDefinition) -> State:
    return NAMING.to_origin(definition.build().state_dict(), definition)


def assert_read(given: State, plain: State, definition: SupernetDefinition, file: Path) -> None:
    torch.save({"state_dict": given}, file)
    _, state = import_supernet(file, origin="cifar_resnet", supernet="resnet20_cifar_a")
    for name, tensor in import_state(plain, definition, NAMING).items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize(
    "prefix",
    [
        *WRAPPERS,
        *OUTER,
        *(a + b for a, b in itertools.permutations(WRAPPERS, 2)),
        *(a + b for a in OUTER for b in WRAPPERS),
        *(b + a for a in OUTER for b in WRAPPERS[:2]),
        "module.module._orig_mod.model._orig_mod.",
    ],
)
def test_what_is_wrapped_around_the_whole_network_is_left_out(
    prefix: str, plain: State, definition: SupernetDefinition, tmp_path: Path
) -> None:
    given = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    assert_read(given, plain, definition, tmp_path / "w.pth")


def test_what_torch_itself_writes_is_read(
    plain: State, definition: SupernetDefinition, tmp_path: Path
) -> None:
    class Trained(nn.Module):
        """A Lightning-like module whose network is compiled, one stage of it by itself."""

        def __init__(self, net: nn.Module):
            super().__init__()
            self.model = torch.compile(net)
            self.criterion = nn.CrossEntropyLoss()

    net = definition.build()
    net.load_state_dict(import_state(plain, definition, NAMING))
    net.layer1 = torch.compile(net.layer1)  # type: ignore[assignment]
    saved = torch.optim.swa_utils.AveragedModel(Trained(net)).state_dict()
    assert "n_averaged" in saved
    assert any("_orig_mod.layer1._orig_mod." in name for name in saved)
    given = {n.replace(".fc.", ".linear."): t for n, t in saved.items()}
    assert_read(given, plain, definition, tmp_path / "w.pth")


def test_inner_data_parallel_and_checkpointed_blocks_are_read(
    plain: State, definition: SupernetDefinition, tmp_path: Path
) -> None:
    given = {
        name.replace("layer2.", "layer2.module.").replace(
            "layer3.1.", "layer3.1._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in plain.items()
    }
    assert given.keys() != plain.keys()
    assert_read(given, plain, definition, tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"epoch": 3, "model": {"state_dict": t}},
        lambda t: {"checkpoint": {"network": t, "optimizer": {"lr": 0.1}}, "step": 4},
        lambda t: {"state_dict": t, "state_dict_ema": {n: x + 1 for n, x in t.items()}},
        lambda t: {"run": {"model_ema": t}},
    ],
)
def test_nested_dictionaries_are_unwrapped(
    wrap, plain: State, definition: SupernetDefinition, tmp_path: Path
) -> None:
    torch.save(wrap(plain), tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth").keys() == plain.keys()


def test_names_that_are_no_prefix_stay_and_are_told(
    plain: State, definition: SupernetDefinition
) -> None:
    given = {f"model.{name}": t for name, t in plain.items()} | {"criterion.w": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"unexpected criterion.w$"):
        import_state(given, definition, NAMING)
    unrelated = {"encoder.a": torch.ones(1), "encoder.b": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"unexpected encoder.a, encoder.b"):
        import_state(unrelated, definition, NAMING)


def test_two_copies_in_one_file_must_be_told_apart(
    plain: State, definition: SupernetDefinition
) -> None:
    given = {f"{p}.{name}": t for p in ("model", "ema_model") for name, t in plain.items()}
    with pytest.raises(WeightsError, match=r"2 times, under model\., ema_model\.; leave out all"):
        import_state(given, definition, NAMING)
    kept = {name: t for name, t in given.items() if not name.startswith("ema_model.")}
    import_state(kept, definition, NAMING)


def test_two_names_that_would_become_one_stay() -> None:
    given = {"a.w": 1, "_orig_mod.a.w": 2}
    assert without_wrappers(given) == given
    assert without_prefix({"x.a.w": 1, "x.b": 2, "c": 3}, ["a.w", "b"]) == {
        "a.w": 1,
        "b": 2,
        "c": 3,
    }
