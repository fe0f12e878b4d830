"""Evolution against enumeration on a tiny space, the predictor, the volume, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slackfit.profile import LatencyProfile, SubnetProfile
from supernet import (
    Arch,
    Checkpoint,
    cost,
    define_supernet,
    extract,
    load_checkpoint,
    save_checkpoint,
)
from training.commands.search_command import search
from training.data.checkpoint_data import dataset_of
from training.evaluation.evaluate import evaluate, is_correct, measure
from training.evaluation.evolution import (
    Aim,
    EvolutionSettings,
    cross,
    evolve,
    front,
    mutate,
    spread_over_cost,
)
from training.evaluation.hypervolume import hyper_volume
from training.evaluation.predictor import AccuracyPredictor, LatencyPredictor

DEFINITION = define_supernet("resnet20_cifar")
SPACE = DEFINITION.space


def size_of(arch: Arch):
    return cost(DEFINITION, arch)


def pretended_accuracy(arch: Arch) -> float:
    """Grows with depth and width, stage by stage with other weights: a known truth."""
    depth = sum(w * d / 3 for w, d in zip((0.2, 0.5, 0.3), arch.depth, strict=True))
    width = sum(w * x for w, x in zip((0.5, 0.2, 0.3), arch.width, strict=True))
    return 0.6 + 0.15 * depth + 0.15 * width + 0.05 * float(np.mean(arch.expand))


@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "ofa_resnet50", "mobilenetv3_small_100", "minilm_l6"]
)
def test_mutations_and_crossovers_stay_inside_the_space(
    name: str, rng: np.random.Generator
) -> None:
    space = define_supernet(name).space
    a, b = space.sample(rng), space.sample(rng)
    for _ in range(50):
        child, other = cross(space, a, b, rng), mutate(space, a, rng)
        assert child in space
        assert other in space
        a, b = child, other


def test_evolution_finds_nearly_the_front_that_enumeration_finds(rng: np.random.Generator) -> None:
    definition = define_supernet("resnet_tiny")
    space = definition.space

    def costs(arch: Arch) -> float:
        return float(cost(definition, arch).macs)

    truth = {arch: Aim(costs(arch), pretended(arch)) for arch in space}
    found = evolve(
        space,
        [],
        costs,
        lambda archs: np.array([pretended(arch) for arch in archs]),
        EvolutionSettings(population=32, generations=15),
        rng,
    )
    best = front(truth)
    wanted = {truth[arch] for arch in best}  # several archs may share a place on the front
    assert len(wanted & set(found.values())) >= 0.9 * len(best)
    capped = evolve(
        space, [], costs, lambda archs: np.ones(len(archs)), EvolutionSettings(limit=1e5), rng
    )
    assert all(aim.cost <= 1e5 for aim in capped.values())
    with pytest.raises(ValueError, match=r"no subnet is within the limit: the smallest, d1-w0.5"):
        evolve(
            space, [], costs, lambda archs: np.ones(len(archs)), EvolutionSettings(limit=10.0), rng
        )


def pretended(arch: Arch) -> float:
    return 0.5 + 0.1 * arch.depth[0] + 0.05 * arch.depth[1] + 0.1 * sum(arch.width) + 0.01 * sum(
        arch.expand
    )  # fmt: skip


def test_the_predictor_ranks_subnets_it_has_not_seen(rng: np.random.Generator) -> None:
    archs = list(dict.fromkeys(SPACE.sample(rng, tilt=rng.random()) for _ in range(120)))
    known = {a: pretended_accuracy(a) + rng.normal(0, 0.002) for a in archs[:80]}
    predictor = AccuracyPredictor(SPACE, size_of, known)
    unseen = archs[80:]
    error = np.abs(predictor(unseen) - [pretended_accuracy(a) for a in unseen])
    assert error.mean() < 0.01
    assert predictor.quality.tau is not None
    assert predictor.quality.tau > 0.8
    assert predictor.quality.mean_error < 0.01
    with pytest.raises(ValueError, match="needs at least 10 subnets, got 3"):
        AccuracyPredictor(SPACE, size_of, dict(list(known.items())[:3]))


def test_subnets_of_one_accuracy_have_no_order_to_foretell(rng: np.random.Generator) -> None:
    """Kendall's tau is NaN then, which JSON does not have: a search had ended without its files."""
    archs = list(dict.fromkeys(SPACE.sample(rng, tilt=rng.random()) for _ in range(30)))
    assert AccuracyPredictor(SPACE, size_of, dict.fromkeys(archs, 1.0)).quality.tau is None


def test_latency_is_as_profiled_or_foretold(rng: np.random.Generator) -> None:
    archs = list(dict.fromkeys(SPACE.sample(rng, tilt=rng.random()) for _ in range(30)))

    def truth(arch: Arch) -> float:
        return 1e-4 + 2e-11 * size_of(arch).macs + 5e-5 * sum(arch.depth)

    predictor = LatencyPredictor(SPACE, size_of, {a: truth(a) for a in archs[:10]})
    assert predictor(archs[0]) == truth(archs[0])
    assert [predictor(a) for a in archs[10:]] == pytest.approx(
        list(map(truth, archs[10:])), rel=1e-3
    )
    assert predictor.relative_error < 1e-3
    with pytest.raises(ValueError, match="needs at least 5"):
        LatencyPredictor(SPACE, size_of, {a: truth(a) for a in archs[:4]})


def test_the_hyper_volume_is_the_area_under_the_staircase() -> None:
    correct = np.zeros((2, 400), dtype=bool)
    correct[0, :200] = correct[1, :300] = True
    volume = hyper_volume(np.array([25.0, 50.0]), correct, ceiling=100.0)
    assert volume.value == pytest.approx(0.25 * 0.5 + 0.5 * 0.75)
    low, high = volume.ci95
    # The standard error of a share of 400 is at most 2.5 points; the weights add up to 0.75.
    assert 0.4 < low < volume.value < high < 0.6
    assert high - low < 4 * 0.025 * 0.75 + 0.01
    nothing = volume.minus(volume)
    assert nothing.ci95 == (0.0, 0.0)
    worse = np.vstack([correct, np.zeros((1, 400), dtype=bool)])
    assert hyper_volume(np.array([25.0, 50.0, 60.0]), worse, 100.0).value == volume.value


def test_a_few_archs_are_spread_over_the_cost() -> None:
    archs = list(SPACE.ladder())
    chosen = spread_over_cost(archs, lambda a: float(size_of(a).macs), 4)
    assert chosen[0] == archs[0]
    assert chosen[-1] == archs[-1]
    assert len(chosen) == 4


def run_search(checkpoint: Path, tmp_path: Path, **options) -> dict:
    file = tmp_path / "search.json"
    search(checkpoint=checkpoint, json_=str(file), samples=12, final=4, calibration_images=128,
           generations=4, **options)  # fmt: skip
    return json.loads(file.read_text())


def test_a_search_writes_front_picture_and_a_checkpoint_that_serves_it(
    trained_folder: Path, tmp_path: Path
) -> None:
    result = run_search(
        trained_folder, tmp_path, plot=tmp_path / "front.png", out=tmp_path / "found"
    )
    found = load_checkpoint(tmp_path / "found")
    by_macs = sorted(result["subnets"], key=lambda s: s["macs"])
    assert [s.subnet_id for s in found.subnets] == [s["subnet_id"] for s in by_macs]
    validation = [s["validation_accuracy"] for s in by_macs]
    assert validation == sorted(validation)
    assert by_macs[-1]["accuracy"] > 0.7
    for s in by_macs:
        assert s["ci95"][0] < s["accuracy"] < s["ci95"][1]
    volume = result["hyper_volume"]
    assert volume["gain"]["value"] == pytest.approx(
        volume["found"]["value"] - volume["ladder"]["value"]
    )
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert result["num_test"] == 359
    again = run_search(trained_folder, tmp_path)
    assert again == result


def test_latency_of_a_profile_can_be_the_cost_and_the_limit(
    trained_folder: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(trained_folder)
    data = dataset_of(checkpoint)
    everything = evaluate(
        checkpoint.state, checkpoint.definition, list(checkpoint.definition.space)[::12],
        input_spec=data.input, calibration=data.train, calibration_images=64,
        held_out=data.validation,
    )  # fmt: skip
    checkpoint = replace(
        checkpoint, subnets=everything.subnets, norm_statistics=everything.norm_statistics
    )
    save_checkpoint(checkpoint, tmp_path / "many")
    profile_of(checkpoint).save(tmp_path / "profile.json")
    limit_ms = 1e3 * (2e-4 + 1e-9 * float(np.median([s.macs for s in checkpoint.subnets])))
    result = run_search(
        tmp_path / "many", tmp_path, profile=tmp_path / "profile.json", max_latency_ms=limit_ms
    )
    assert result["cost"] == "latency_s of batch 1"
    assert all(s["cost"] <= limit_ms / 1e3 for s in result["subnets"])
    assert result["latency_error"] < 0.01


def profile_of(checkpoint: Checkpoint) -> LatencyProfile:
    return LatencyProfile(
        name="pretended", device="cpu", dtype="float32", batch_sizes=(1,),
        subnets=tuple(
            SubnetProfile(subnet_id=s.subnet_id, accuracy=s.accuracy, macs=s.macs,
                          latency_s={"p50": (2e-4 + 1e-9 * s.macs,)})
            for s in checkpoint.subnets
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_latency_ms": 1.0}, "--max-latency-ms needs --profile"),
        ({"max_macs": 0.00001}, "no subnet is within the limit"),
        ({"data": Path("nowhere")}, "nowhere: expected an array folder"),
    ],
)
def test_a_wrong_search_is_refused(
    trained_folder: Path, tmp_path: Path, options, message: str, capsys: pytest.CaptureFixture[str]
) -> None:

    with pytest.raises(SystemExit) as refused:
        run_search(trained_folder, tmp_path, **options)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_the_largest_subnet_scores_the_same_by_search_and_by_hand(trained_folder: Path) -> None:
    checkpoint = load_checkpoint(trained_folder)
    data = dataset_of(checkpoint)
    arch = checkpoint.definition.space.largest
    measured = measure(
        checkpoint.state, checkpoint.definition, arch, input_spec=data.input,
        calibration=data.train, calibration_images=256, held_out=data.validation,
    )  # fmt: skip
    net = extract(checkpoint.state, checkpoint.definition, arch, measured.statistics)
    with torch.inference_mode():
        correct = int(is_correct(net, data.validation, data.input, arch.resolution).sum())
    assert measured.accuracy == pytest.approx(correct / len(data.validation))
