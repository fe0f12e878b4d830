"""What makes a step fit into less memory: micro-batches and activation checkpointing.

Neither may change what is learnt; bytes are counted tensor by tensor, so they are the same in every
run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supernet import SupernetDefinition, define_supernet
from training.config import ConfigError, TrainConfig, config_from_json
from training.data.data import load_dataset
from training.trainer.activation_checkpointing import innermost_blocks
from training.trainer.batch_shares import few_samples, micro_batches
from training.trainer.resume import RESUME_FILE
from training.trainer.shared_weights import SharedWeights
from training.trainer.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
VIT = {
    "resolution": 8, "patch_size": 2, "width": 32, "depth": 6, "num_heads": 2, "num_classes": 10,
    "in_channels": 1, "depth_choices": [2, 6], "heads_choices": [1, 2], "expand_choices": [1, 4],
}  # fmt: skip
BERT = {
    "vocab_size": 12, "num_tokens": 8, "max_positions": 8, "width": 16, "depth": 4,
    "num_heads": 2, "depth_choices": [2, 4], "heads_choices": [1, 2], "expand_choices": [1, 2],
}  # fmt: skip
NETWORKS = {
    "resnet_tiny": {},
    "pooled_resnet_tiny": {},
    "ofa_mobilenet_v3_w1.0": {"resolutions": [32]},
    "vit_tiny_patch16_224": VIT,
    "bert_tiny": BERT,
    "decoder_tiny": {},
}


class PeakMemory(TorchDispatchMode):
    """Bytes of tensors that were made while this is open, at most at once.

    A tensor counts from the operation that makes its storage to the end of that storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        known = self._alive.get(id(storage))
        if known is not None and known() is storage:
            return
        size, key = storage.nbytes(), id(storage)

        def gone(_: object) -> None:
            self._now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


def trainer_of(out: Path, *, data: dict | None = None, **changes: object) -> Trainer:
    """A sandwich of the vision transformer: no BatchNorm, so parts of a batch add up."""
    config = config_from_json({
        "name": "tiny", "threads": 1, "amp": "off",
        "supernet": {"variant": "vit_tiny_patch16_224", "overrides": VIT},
        "data": {"batch_size": 60, "augment": 0.0, **(data or {})},
        "schedule": {"strategy": "sandwich", "epochs": 1},
        "optimizer": {"weight_decay": 0.0}, **changes,
    })  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    definition = define_supernet(config.supernet.variant, **config.supernet.overrides)
    return Trainer(config, definition, load_dataset("digits"), out)


def stop_after(steps: int) -> Callable[[], bool]:
    remaining = iter(range(steps))
    return lambda: next(remaining, None) is None


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.weights.parameters.items()}


def inputs_of(definition: SupernetDefinition) -> torch.Tensor:
    example = definition.example_input(definition.space.largest, 4)
    rng = np.random.default_rng(0)
    if example.dtype == torch.int64:
        return torch.from_numpy(rng.integers(1, 12, tuple(example.shape)))
    return torch.from_numpy(rng.normal(size=tuple(example.shape)).astype(np.float32))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_plain_network_to_the_last_bit(name: str) -> None:
    definition = define_supernet(name, **NETWORKS[name])
    x = inputs_of(definition)
    space = definition.space
    for arch in (space.largest, space.smallest, space.sample(np.random.default_rng(0))):
        found = []
        for is_checkpointed in (False, True):
            weights = SharedWeights(
                definition, device="cpu", seed=0, is_checkpointed=is_checkpointed
            )
            hidden: dict[str, torch.Tensor] = {}
            logits = weights.forward(arch, x, hidden=hidden)
            (logits.square().mean() + sum(h.square().mean() for h in hidden.values())).backward()
            found.append((logits.detach(), list(hidden), weights.parameters))
        (plain, names, expected), (again, same_names, gradients) = found
        assert torch.equal(plain, again)
        assert names == same_names
        for key, parameter in expected.items():
            mine, theirs = gradients[key].grad, parameter.grad
            assert (mine is None) == (theirs is None), key
            assert mine is None or torch.equal(mine, theirs), key


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_of_a_network_is_run_again(name: str) -> None:
    """As many as the deepest subnet has; none is inside another one, which would run it thrice."""
    definition = define_supernet(name, **NETWORKS[name])
    net = definition.on_meta(definition.space.largest)
    blocks = list(innermost_blocks(net))
    assert len(blocks) >= sum(definition.space.largest.depth)
    inside = [id(inner) for block in blocks for inner in block.modules() if inner is not block]
    assert not {id(block) for block in blocks} & set(inside)


def test_a_batch_in_micro_batches_gives_the_gradient_of_the_whole(tmp_path: Path) -> None:
    changes = {"loss": {"features": "layer_pairs", "pairs": "uniform"}}
    whole = trainer_of(tmp_path / "whole", **changes)
    parts = trainer_of(tmp_path / "parts", data={"micro_batch_size": 16}, **changes)
    for trainer in (whole, parts):
        trainer.run(should_stop=stop_after(3))
    expected, found = weights_of(whole), weights_of(parts)
    assert any(not torch.equal(expected[name], found[name]) for name in expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"strategy": "dynabert", "epochs": 1}},  # a frozen teacher's hidden states
        {"optimizer": {"ema_decay": 0.9, "weight_decay": 0.0}, "loss": {"teacher": "average"}},
        {"loss": {"dropout": 0.3}},
    ],
)
def test_so_it_does_with_every_kind_of_teacher(tmp_path: Path, changes: dict) -> None:
    whole = trainer_of(tmp_path / "whole", **changes)
    parts = trainer_of(tmp_path / "parts", data={"micro_batch_size": 16}, **changes)
    for trainer in (whole, parts):
        trainer.run(should_stop=stop_after(10))
    expected, found = weights_of(whole), weights_of(parts)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)


def test_a_step_takes_a_fraction_of_the_memory(tmp_path: Path) -> None:
    """Largest, smallest and two drawn subnets of six blocks, 60 samples."""

    def peak(name: str, **changes: object) -> int:
        trainer = trainer_of(tmp_path / name, schedule={"strategy": "sandwich", "parts": 1},
                             **changes)  # fmt: skip
        batch = trainer.data.train.take(torch.arange(60))
        with PeakMemory() as memory:
            trainer._train_step(batch)
        return memory.peak

    plain = peak("plain")
    assert peak("checkpointed", activation_checkpointing=True) < 0.4 * plain
    assert peak("quarters", data={"micro_batch_size": 15}) < 0.4 * plain
    both = peak("both", data={"micro_batch_size": 15}, activation_checkpointing=True)
    assert both < 0.2 * plain


def test_a_run_that_began_without_checkpointing_goes_on_with_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    definition, data = define_supernet("resnet_tiny"), load_dataset("digits")
    whole = Trainer(make_config(), definition, data, tmp_path)
    assert not whole.run(should_stop=stop_after(5))
    assert (tmp_path / RESUME_FILE).exists()
    again = Trainer(
        make_config(activation_checkpointing=True), definition, data, tmp_path, resume=True
    )
    assert again.step == 5


def test_rows_are_cut_into_equal_runs() -> None:
    assert micro_batches(slice(5, 15), 0) == micro_batches(slice(5, 15), 10) == [slice(5, 15)]
    for most in range(1, 12):
        cut = micro_batches(slice(5, 15), most)
        assert [i for rows in cut for i in range(rows.start, rows.stop)] == list(range(5, 15))
        sizes = [rows.stop - rows.start for rows in cut]
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1


def test_micro_batches_too_small_for_a_batch_norm_are_said(make_config: MakeConfig) -> None:
    definition = define_supernet("resnet_tiny")
    small = make_config(data={"micro_batch_size": 8})
    assert "sees 8 samples of a step at a time" in few_samples(small, definition, 1)
    enough = make_config(data={"micro_batch_size": 42})
    assert not few_samples(enough, definition, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"micro_batch_size": -1}}, "data.micro_batch_size is -1, allowed 0 or more"),
        (
            {"data": {"name": "graph", "path": "g", "micro_batch_size": 4}},
            "not for data.name graph, which is one batch as a whole",
        ),
        (
            {"schedule": {"focus": 0.1}, "loss": {"features": "layer_pairs"}},
            "allowed with loss.full_model labels and schedule.focus 0",
        ),
    ],
)
def test_settings_that_would_not_do_what_they_say_are_refused(
    changes: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_json({"supernet": {"variant": "resnet_tiny"}, **changes})


def test_so_they_are_in_half_precision() -> None:
    """What is run again is run as the first time: under the same autocast."""
    definition = define_supernet("vit_tiny_patch16_224", **VIT)
    x, found = inputs_of(definition), []
    for is_checkpointed in (False, True):
        weights = SharedWeights(definition, device="cpu", seed=0, is_checkpointed=is_checkpointed)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            logits = weights.forward(definition.space.largest, x)
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
        found.append({name: p.grad for name, p in weights.parameters.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
