from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from supernet import (
    Checkpoint,
    CheckpointError,
    InputSpec,
    ServedSubnet,
    SupernetDefinition,
    cost,
    load_checkpoint,
    save_checkpoint,
)
from supernet.checkpoint import check_state


@pytest.fixture
def checkpoint(tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]) -> Checkpoint:
    archs = tiny.space.ladder()[:3]
    statistics = {
        arch.subnet_id: {
            name: torch.ones(shape)
            for name, shape in tiny.buffer_shapes(arch).items()
            if not name.endswith("num_batches_tracked")
        }
        for arch in archs
    }
    return Checkpoint(
        name="tiny",
        definition=tiny,
        input=InputSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.25,)),
        state=tiny_state,
        norm_statistics=statistics,
        subnets=tuple(
            ServedSubnet(arch=arch, accuracy=0.5, ci95=(0.4, 0.6), **cost(tiny, arch)._asdict())
            for arch in archs
        ),
        accuracy_source="nothing real",
        permutation={"layer1.0.inner": list(range(16))},
        provenance={"seed": 0},
    )


def test_a_checkpoint_round_trips(checkpoint: Checkpoint, tmp_path: Path) -> None:
    fingerprint = save_checkpoint(checkpoint, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.fingerprint == fingerprint
    assert loaded.definition == checkpoint.definition
    assert loaded.subnets == checkpoint.subnets
    assert loaded.input == checkpoint.input
    assert loaded.permutation == checkpoint.permutation
    assert loaded.accuracy_source == "nothing real"
    assert all(torch.equal(loaded.state[n], t) for n, t in checkpoint.state.items())
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def rounded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its last subnet in int8, too."""
    last = checkpoint.subnets[-1]
    return replace(
        checkpoint,
        int8_subnets=(replace(last, precision="int8", accuracy=0.49),),
        activation_ranges={last.subnet_id: {"x": torch.tensor([-1.0, 2.0, 0.5, 0.25])}},
    )


def test_int8_entries_stand_beside_their_float_ones(
    checkpoint: Checkpoint, rounded: Checkpoint, tmp_path: Path
) -> None:
    plain = save_checkpoint(checkpoint, tmp_path)
    assert save_checkpoint(rounded, tmp_path) == plain, "profiles of the float subnets stay good"
    loaded = load_checkpoint(tmp_path)
    assert (loaded.subnets, loaded.int8_subnets) == (checkpoint.subnets, rounded.int8_subnets)
    last = checkpoint.subnet_ids[-1]
    assert torch.equal(loaded.activation_ranges[last]["x"], rounded.activation_ranges[last]["x"])
    assert loaded.subnet(f"{last}-i8").accuracy == 0.49
    assert [form.subnet_id for form in loaded.forms] == [*checkpoint.subnet_ids, f"{last}-i8"]
    rows = json.loads((tmp_path / "accuracy.json").read_text())["subnets"]
    assert [row.get("precision") for row in rows] == [None, None, None, "int8"]
    save_checkpoint(checkpoint, tmp_path)  # and without them again
    assert load_checkpoint(tmp_path).forms == checkpoint.subnets
    assert not (tmp_path / "activation_ranges.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_ranges": {}}, "d.*-i8 needs d.* beside it and its ranges"),
        ({"activation_ranges": {"d9": {"x": torch.ones(2)}}}, "needs d.* beside it"),
        (
            {"activation_ranges": "reversed"},
            "/x holds no lowest and highest value",
        ),
    ],
)
def test_an_int8_entry_without_what_it_needs_is_refused(
    rounded: Checkpoint, tmp_path: Path, change: dict, message: str
) -> None:
    if change["activation_ranges"] == "reversed":
        last = rounded.subnet_ids[-1]
        change = {"activation_ranges": {last: {"x": torch.tensor([2.0, 1.0])}}}
    save_checkpoint(replace(rounded, **change), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_the_fingerprint_follows_the_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = save_checkpoint(checkpoint, tmp_path / "a")
    checkpoint.state["fc.bias"].add_(1.0)
    assert save_checkpoint(checkpoint, tmp_path / "b") != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc.bias"), "missing fc.bias"),
        (lambda state: state.update(surprise=torch.zeros(1)), "not known surprise"),
        (
            lambda state: state.update({"fc.bias": torch.zeros(3)}),
            r"fc.bias has shape \(3,\), expected \(10,\)",
        ),
    ],
)
def test_missing_extra_and_misshaped_tensors_are_named(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor], change, message: str
) -> None:
    change(tiny_state)
    with pytest.raises(CheckpointError, match=message):
        check_state(tiny_state, tiny)


def test_an_altered_or_truncated_file_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path)
    weights = tmp_path / "supernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="altered, truncated or belongs to another"):
        load_checkpoint(tmp_path)


def test_an_extra_tensor_with_matching_digest_is_still_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(checkpoint, tmp_path)
    weights = tmp_path / "supernet.safetensors"
    save_file(load_file(weights) | {"surprise": torch.zeros(1)}, weights)
    _accept_digest(tmp_path, "supernet.safetensors")
    with pytest.raises(CheckpointError, match="not known surprise"):
        load_checkpoint(tmp_path)


def test_an_arch_outside_the_space_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path)
    accuracy = json.loads((tmp_path / "accuracy.json").read_text())
    accuracy["subnets"][0]["arch"]["depth"] = [1, 7]
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    _accept_digest(tmp_path, "accuracy.json")
    with pytest.raises(CheckpointError, match=r"depth\[1\] is 7, allowed 1, 2"):
        load_checkpoint(tmp_path)


def test_json_that_disagrees_with_the_tensors_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(checkpoint, tmp_path)
    header = json.loads((tmp_path / "supernet.json").read_text())
    header["config"]["num_classes"] = 7
    (tmp_path / "supernet.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="fc.weight has shape"):
        load_checkpoint(tmp_path)


def test_a_header_says_what_the_network_gives_and_is_held_to_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(checkpoint, tmp_path)
    header = json.loads((tmp_path / "supernet.json").read_text())
    assert header["output"] == {"kind": "logits", "size": checkpoint.definition.config.num_classes}
    header["output"]["kind"] = "embedding"
    (tmp_path / "supernet.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="output is .*embedding.* but the network gives"):
        load_checkpoint(tmp_path)
    del header["output"]  # as in checkpoints of before
    (tmp_path / "supernet.json").write_text(json.dumps(header))
    assert load_checkpoint(tmp_path).definition == checkpoint.definition


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this a checkpoint folder"):
        load_checkpoint(tmp_path)


def _accept_digest(folder: Path, name: str) -> None:
    import hashlib

    header = json.loads((folder / "supernet.json").read_text())
    header["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "supernet.json").write_text(json.dumps(header))


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("fails", ["supernet.safetensors", "norm_statistics.safetensors"])
def test_a_full_disk_leaves_what_was_there(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    exists: bool,
) -> None:
    if exists:
        save_checkpoint(checkpoint, tmp_path / "out")

    def save_until_full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name == fails:
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr("supernet.checkpoint.save_tensors", save_until_full)
    changed = replace(checkpoint, state={n: t + 1 for n, t in checkpoint.state.items()})
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(changed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    if exists:
        kept = load_checkpoint(tmp_path / "out").state
        assert all(torch.equal(kept[n], t) for n, t in checkpoint.state.items())


def test_a_checkpoints_files_may_be_read_by_whom_any_new_file_may(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "new").touch()
    save_checkpoint(checkpoint, tmp_path / "out")
    modes = {path.stat().st_mode for path in [tmp_path / "new", *(tmp_path / "out").iterdir()]}
    assert len(modes) == 1


def test_a_folder_of_something_else_keeps_what_a_checkpoint_might_have(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A text network's own folder has a tokenizer.json, which a checkpoint without text has not."""
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(checkpoint, tmp_path)
    assert load_checkpoint(tmp_path).text is None
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
