"""A search over a decoder's widths, block by block, on text: against a truth that is known."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slackfit.profile import LatencyProfile, SubnetProfile
from supernet import (
    Arch,
    Checkpoint,
    InputSpec,
    ServedSubnet,
    cost,
    define_supernet,
    load_checkpoint,
    save_checkpoint,
)
from supernet.subnets.agreement import top1_agreement
from supernet.subnets.cost import cost_of_alike_blocks
from training.commands.calibrate_command import calibrate
from training.commands.precision_command import precision
from training.commands.search_command import search
from training.config import DataConfig
from training.data.checkpoint_data import dataset_of
from training.data.corpus import load_corpus
from training.evaluation.agreement_judge import AgreementJudge
from training.evaluation.decoder import spread_windows
from training.evaluation.evolution import cross
from training.evaluation.low_bit import measure_low_bit
from training.evaluation.predictor import LatencyPredictor

pytest.importorskip("tokenizers")

WINDOWS = 20
DEFINITION = define_supernet("decoder_tiny", vocab_size=280)
IDLE = 1  # the block whose feed-forward says nothing


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 characters of a small language."""
    draw = random.Random(0)
    nouns, verbs = ("the king", "a fool", "my lord", "this day"), ("sees", "leaves", "wants")
    words = (
        f"{draw.choice(nouns)} {draw.choice(verbs)} {draw.choice(nouns)}.\n" for _ in range(1600)
    )
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text("".join(words))
    return path


@pytest.fixture(scope="module")
def folder(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, but the second block's feed-forward gives zeros: its width costs for nothing.

    So the front is known: the second block at its narrowest, whatever the first one has.
    """
    text = load_corpus(DataConfig(name="corpus", path=str(text_file), vocabulary="bpe:280"), 0).text
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator)
        * (1.0 if "embedding" in name else 1.5 / tensor.shape[-1] ** 0.5)
        if tensor.dim() > 1
        else torch.ones(tensor.shape)
        for name, tensor in DEFINITION.on_meta().state_dict().items()
    }
    state[f"blocks.{IDLE}.mlp.down.weight"].zero_()
    ladder = DEFINITION.space.ladder()
    checkpoint = Checkpoint(
        name="half idle",
        definition=DEFINITION,
        input=InputSpec(channels=1, height=1, width=16, mean=(0.0,), std=(1.0,), kind="tokens"),
        state=state,
        norm_statistics={arch.subnet_id: {} for arch in ladder},
        subnets=tuple(
            ServedSubnet(arch=a, accuracy=0.5, ci95=(0.0, 1.0), **cost(DEFINITION, a)._asdict())
            for a in ladder
        ),
        provenance={"perplexity": {arch.subnet_id: 9.0 for arch in ladder}},
        text=text,
    )
    path = tmp_path_factory.mktemp("lm") / "checkpoint"
    save_checkpoint(checkpoint, path)
    return path


def run_search(folder: Path, text_file: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    file = tmp_path / "search.json"
    given = {"samples": 24, "final": 2, "generations": 2, "windows": WINDOWS, **options}
    search(checkpoint=folder, data=text_file, json_=str(file), **given)
    return json.loads(file.read_text())


def test_the_front_is_found_written_and_worth_what_it_says(
    folder: Path, text_file: Path, tmp_path: Path
) -> None:
    result = run_search(folder, text_file, tmp_path, out=tmp_path / "found")
    archs = [Arch.from_json(s["arch"]) for s in result["subnets"]]
    assert {arch.expand[IDLE] for arch in archs} == {0.25}
    assert archs[-1].expand == (1.0, 0.25)
    assert result["subnets"][-1]["accuracy"] == 1.0
    assert result["num_validation"] == result["num_test"] == WINDOWS
    assert result["hyper_volume"]["gain"]["value"] > 0.0
    found = load_checkpoint(tmp_path / "found")
    assert [s.arch for s in found.subnets] == archs
    assert found.accuracy_source.startswith("top1_agreement: ")
    assert "perplexity" not in found.provenance  # those were of other subnets
    texts = spread_windows(dataset_of(found, text_file).test, WINDOWS)
    truth = top1_agreement(found.state, found.definition, archs, texts)
    for subnet in found.subnets:
        assert subnet.accuracy == pytest.approx(truth[subnet.subnet_id].share)
        low, high = subnet.ci95
        assert low <= subnet.accuracy <= high
    again = run_search(folder, text_file, tmp_path)
    assert again == result


def test_a_stopped_search_goes_on(
    folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "measured.jsonl"
    whole = run_search(folder, text_file, tmp_path, keep=keep)
    lines = keep.read_text().splitlines(keepends=True)
    keep.write_text("".join(lines[:9]) + lines[9][:30])  # killed in the middle of a line
    measured: list[tuple[str, str]] = []
    agreed = AgreementJudge._agreed

    def counting(self: AgreementJudge, arch: Arch, split: Any) -> np.ndarray:
        measured.append((arch.subnet_id, split))
        return agreed(self, arch, split)

    monkeypatch.setattr(AgreementJudge, "_agreed", counting)
    assert run_search(folder, text_file, tmp_path, keep=keep) == whole
    assert len(measured) == len(set(measured)) == len(lines) - 1 - 8
    measured.clear()
    assert run_search(folder, text_file, tmp_path, keep=keep) == whole
    assert measured == []
    with pytest.raises(SystemExit):
        run_search(folder, text_file, tmp_path, keep=keep, windows=WINDOWS + 1)


def test_the_cost_of_a_pattern_is_foretold_from_profiled_widths(
    folder: Path, text_file: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(folder)

    def truth_s(params: int) -> float:
        return 1e-3 + 2e-8 * params

    profile = LatencyProfile(
        name="pretended", device="cpu", dtype="float32", batch_sizes=(1, 8),
        subnets=tuple(
            SubnetProfile(subnet_id=s.subnet_id, accuracy=s.accuracy, macs=s.macs,
                          latency_s={"p50": (truth_s(s.params) / 2, truth_s(s.params))})
            for s in checkpoint.subnets
        ),
    )  # fmt: skip
    profile.save(tmp_path / "profile.json")
    limit_ms = 1e3 * truth_s(checkpoint.subnets[2].params)
    result = run_search(
        folder, text_file, tmp_path,
        profile=tmp_path / "profile.json", batch_size=8, max_latency_ms=limit_ms,
    )  # fmt: skip
    assert result["latency_error"] < 1e-6
    for s in result["subnets"]:
        assert s["cost"] == pytest.approx(truth_s(s["params"]))
        assert s["cost"] <= limit_ms / 1e3
    assert Arch.from_json(result["subnets"][-1]["arch"]).expand[IDLE] == 0.25


def test_a_slow_moment_of_a_profile_makes_no_pattern_cheap() -> None:
    """A profiled width counts by the fit, too: else what reads more could seem to cost less."""
    space = DEFINITION.space

    def size_of(arch: Arch) -> Any:
        return cost(DEFINITION, arch)

    measured = {a: 1e-3 + 1e-8 * size_of(a).params for a in space.ladder()}
    slow = space.ladder()[1]
    predictor = LatencyPredictor(
        space, size_of, measured | {slow: 2 * measured[slow]}, of_iterations=True
    )
    by_params = sorted(space, key=lambda arch: size_of(arch).params)
    foretold = [predictor(arch) for arch in by_params]
    assert foretold == sorted(foretold)
    with pytest.raises(ValueError, match="has 2 subnets of this space; .* at least 3"):
        LatencyPredictor(space, size_of, dict(list(measured.items())[:2]), of_iterations=True)


def test_a_pattern_is_counted_by_uniform_archs_to_the_last_mac(rng: np.random.Generator) -> None:
    changes = {"depth": 5, "num_heads": 6, "heads_choices": (1, 2, 3), "depth_choices": (2, 5)}
    for definition in (DEFINITION, define_supernet("decoder_tiny", **changes, qkv_bias=True)):
        for _ in range(8):
            arch = definition.space.sample(rng)
            assert cost_of_alike_blocks(definition, arch) == cost(definition, arch)


def test_blocks_of_a_single_stage_are_crossed_one_by_one(rng: np.random.Generator) -> None:
    space = define_supernet("decoder_tiny", depth=12).space
    smallest, largest = space.smallest, space.largest
    children = [cross(space, smallest, largest, rng) for _ in range(8)]
    assert all(child in space for child in children)
    assert any(0 < child.expand.count(1.0) < 12 for child in children)


def test_calibrate_measures_widths_on_text_of_yours(
    folder: Path, text_file: Path, tmp_path: Path
) -> None:
    before = load_checkpoint(folder)
    calibrate(
        checkpoint=folder, data=text_file, out=tmp_path / "measured", ladder=False,
        arch=['{"resolution": 16, "depth": [2], "expand": [1.0, 0.25]}'], windows=WINDOWS,
    )  # fmt: skip
    after = load_checkpoint(tmp_path / "measured")
    texts = spread_windows(dataset_of(before, text_file).test, WINDOWS)
    archs = [s.arch for s in after.subnets]
    truth = top1_agreement(before.state, before.definition, archs, texts)
    assert [s.accuracy for s in after.subnets] == pytest.approx(
        [truth[s.subnet_id].share for s in after.subnets]
    )
    assert archs[-1].expand == (1.0, 0.25)  # as right as the largest, and cheaper
    assert before.definition.space.largest not in archs
    assert after.accuracy_source.startswith(
        "top1_agreement: next tokens as the largest says, of 20"
    )
    for name, tensor in before.state.items():
        assert torch.equal(after.state[name], tensor)


def test_damaged_weights_have_no_quality(
    folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is not finite would agree on some token: 100 %."""
    good = load_checkpoint(folder)
    state = {name: tensor.clone() for name, tensor in good.state.items()}
    state["blocks.0.mlp.down.weight"][0, 0] = float("nan")
    save_checkpoint(replace(good, state=state), tmp_path / "broken")
    for command in (search, calibrate):
        with pytest.raises(SystemExit):
            command(checkpoint=tmp_path / "broken", data=text_file, out=tmp_path / "out")
        said = capsys.readouterr().err
        assert "error: the output of the network is not finite: its weights are damaged" in said
        assert not (tmp_path / "out").exists()


def test_what_a_run_was_trained_on_holds_out_what_it_did_then(
    folder: Path, text_file: Path, tmp_path: Path
) -> None:
    options = DataConfig(
        name="corpus", path=str(text_file), vocabulary="bpe:280", size=16, validation=0.03
    )
    run = load_corpus(options, 0)
    assert run.split is not None
    checkpoint = replace(
        load_checkpoint(folder),
        text=run.text,
        provenance={"config": {"data": vars_of(options)}, "split": run.split.to_json()},
    )
    moved = tmp_path / "moved.txt"
    moved.write_text(text_file.read_text())
    for data in (dataset_of(checkpoint), dataset_of(checkpoint, moved)):
        for split in ("validation", "test"):
            ours, theirs = (
                getattr(d, split).take(torch.arange(len(getattr(d, split)))) for d in (data, run)
            )
            assert torch.equal(ours.images, theirs.images), split
        assert 0 < len(data.train) <= 2 * len(data.test)
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() + "more.\n")
    assert len(dataset_of(checkpoint, other).validation) > 2 * len(run.validation)


def vars_of(options: DataConfig) -> dict[str, Any]:
    return {name: getattr(options, name) for name in DataConfig.__dataclass_fields__}


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (search, {"data": Path("nowhere.txt")}, "nowhere.txt: not a readable text file"),
        (search, {}, "does not say what it was trained on; pass --data FILE, running text"),
        (search, {"max_macs": 1e-6}, "no subnet is within the limit"),
        (calibrate, {"tune_epochs": 1.0}, "a decoder has none: leave it out"),
        (precision, {}, "is a decoder, whose int8 is a packing of all its widths"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    folder: Path,
    text_file: Path,
    command: Any,
    options: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {p: p.read_bytes() for p in folder.iterdir()}
    if "max_macs" in options or command is calibrate:
        options = {"data": text_file, **options}
    with pytest.raises(SystemExit) as refused:
        command(checkpoint=folder, **options)
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "\n" not in said.strip()
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_one_bit_widths_are_chosen_on_validation_text(folder: Path, text_file: Path) -> None:
    """What they lose had been taken from the test text, which reports what is chosen."""
    loaded = load_checkpoint(folder)
    data = dataset_of(loaded, text_file)
    fewer = replace(data, test=data.test.take(torch.arange(2)))
    whole, part = (measure_low_bit(loaded, each) for each in (data, fewer))
    assert [m.loss for m in whole] == [m.loss for m in part]
    assert [m.accuracy for m in whole] != [m.accuracy for m in part]
    for measured in whole:
        assert measured.loss_ci95[0] <= measured.loss <= measured.loss_ci95[1]
    assert any(measured.loss for measured in whole)
