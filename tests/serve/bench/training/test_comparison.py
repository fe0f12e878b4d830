"""Differences of cases: pairs of seeds, the same test images, both kinds of chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serve.bench.training.comparison import CaseComparison, Tuned, difference
from serve.bench.training.timed_run import FinishedRun, of_all_shapes, packed, unpacked
from supernet import define_supernet

NUM_IMAGES = 400


def run_of(case: str, seed: int, share: float, *, first: int = 0) -> FinishedRun:
    """A run that gets `share` of the images right at both points, from `first` on."""
    hits = np.zeros((2, NUM_IMAGES), dtype=bool)
    hits[:, first : first + round(share * NUM_IMAGES)] = True
    test = hits.mean(axis=1).tolist()
    return FinishedRun(case, seed, 0.1, 90, 60.0 + seed, test, test, packed(hits))


def runs_of(case: str, *shares: float, first: int = 0) -> list[FinishedRun]:
    return [run_of(case, seed, share, first=first) for seed, share in enumerate(shares)]


def test_hits_survive_the_journal() -> None:
    hits = np.random.default_rng(0).random((5, 37)) < 0.5
    np.testing.assert_array_equal(unpacked(packed(hits)), hits)


def test_a_steady_gain_is_beyond_chance_and_one_that_changes_is_not() -> None:
    reference = runs_of("deps", 0.70, 0.60, 0.80)
    steady = difference(runs_of("other", 0.75, 0.65, 0.85), reference, [0, 1])
    assert steady is not None
    assert steady.value == pytest.approx(0.05)
    assert 0.0 < steady.low < steady.high < 0.1
    assert steady.is_beyond_chance, "the seeds themselves differ by 20 points, their pairs do not"
    changing = difference(runs_of("other", 0.85, 0.55, 0.85), reference, [0, 1])
    assert changing is not None
    assert changing.value == pytest.approx(0.05)
    half = 4.303 * np.std([0.15, -0.05, 0.05], ddof=1) / math.sqrt(3)
    assert changing.high - changing.value >= half
    assert not changing.is_beyond_chance


def test_other_images_count_where_the_seeds_agree() -> None:
    reference = runs_of("deps", 0.70, 0.70, 0.70)
    apart = difference(runs_of("other", 0.71, 0.71, 0.71, first=116), reference, [0])
    assert apart is not None
    assert apart.value == pytest.approx(0.01)
    assert not apart.is_beyond_chance, "each gets 29 % right that the other gets wrong"


def test_one_seed_says_nothing_about_others() -> None:
    gap = difference(runs_of("other", 0.9), runs_of("deps", 0.5), [0, 1])
    assert gap is not None
    assert gap.low > 0
    assert not gap.is_beyond_chance


def test_only_runs_of_one_seed_are_paired() -> None:
    assert difference([run_of("other", 2, 0.9)], runs_of("deps", 0.5, 0.5), [0]) is None
    gap = difference(runs_of("other", 0.9, 0.9, 0.9), runs_of("deps", 0.5, 0.5), [0])
    assert gap is not None
    assert gap.num_seeds == 2


def test_the_table_has_a_line_per_case_and_rows_say_where_they_come_from() -> None:
    space = define_supernet("resnet_tiny").space
    points = [(space.smallest, 1_000_000), (space.largest, 4_000_000)]
    runs = {"deps": runs_of("deps", 0.7, 0.6), "other": runs_of("other", 0.8, 0.7), "none": []}
    tuned = {"deps": Tuned(0.1, {0.03: 0.5, 0.1: 0.6, 0.3: 0.4})}
    compared = CaseComparison(runs, tuned, points)
    lines = compared.table().splitlines()
    assert lines[0] == ("| case | rate | 1.0 M | 4.0 M | mean | less deps (95 %) | core s |")
    assert lines[2] == "| deps | 0.1 | 65.0 | 65.0 | 65.0 |  | 60 |"
    assert lines[3].startswith("| other | - | 75.0 | 75.0 | 75.0 | +10.0 (")
    assert len(lines) == 4
    rows = {row["figure"]: row for row in compared.rows(61.0)}
    assert rows["training/deps/rate"]["detail"]["is_at_edge"] is False
    assert rows["training/deps/p2/accuracy"]["detail"]["macs"] == 4_000_000
    assert rows["training/other/cpu"]["detail"] == {
        "steps": [90, 90], "aimed_at_s": 61.0, "seeds": [60.0, 61.0],
    }  # fmt: skip
    assert rows["training/other/cpu/over_deps"]["value"] == 1.0
    assert compared.times() == "Processor time over that of deps: other 1.00."
    assert Tuned(0.3, {0.03: 0.5, 0.1: 0.6, 0.3: 0.7}).is_at_edge


def test_unequal_times_and_runs_that_diverged_are_named_beside_the_table() -> None:
    space = define_supernet("resnet_tiny").space
    points = [(space.smallest, 1_000_000), (space.largest, 4_000_000)]
    short = [run._replace(cpu_s=0.82 * run.cpu_s) for run in runs_of("short", 0.5, 0.5)]
    broken = [run._replace(cpu_s=1.0, is_diverged=True) for run in runs_of("broken", 0.0)]
    broken += runs_of("broken", 0.6, 0.6)[1:]
    runs = {"deps": runs_of("deps", 0.7, 0.6), "short": short, "broken": broken}
    compared = CaseComparison(runs, {}, points)
    assert compared.times() == (
        "Processor time over that of deps: short 0.82, broken 1.00. Not equal within 5%: short."
    )
    lines = compared.table().splitlines()
    assert lines[3].startswith("| short | ")
    assert lines[4].startswith("| broken (1 of 2 diverged) | ")


def test_validation_images_are_each_seeds_own() -> None:
    """Seeds that err on other images each: the same rows of two seeds are not the same image."""

    def on_validation(*shares: float) -> list[FinishedRun]:
        runs = runs_of("x", *shares)
        return [run._replace(test=[], test_hits="", validation_hits=run.test_hits) for run in runs]

    reference, better = on_validation(0.70, 0.60, 0.80), on_validation(0.75, 0.65, 0.85)
    gap = difference(better, reference, [0, 1], "validation")
    on_test = difference(
        runs_of("x", 0.75, 0.65, 0.85), runs_of("x", 0.70, 0.60, 0.80), [0, 1], "test"
    )
    assert gap is not None
    assert on_test is not None
    assert gap.value == pytest.approx(0.05)
    wide = 1.96 * math.sqrt(0.05 * 0.95 / (3 * NUM_IMAGES))  # each of 1,200 images for itself
    assert gap.high - gap.value == pytest.approx(wide, rel=0.01)
    space = define_supernet("resnet_tiny").space
    points = [(space.smallest, 1_000_000), (space.largest, 4_000_000)]
    compared = CaseComparison({"deps": reference, "better": better}, {}, points, "validation")
    assert compared.table().splitlines()[3].startswith("| better | - | 75.0 | 75.0 | 75.0 | +5.0 (")
    rows = {row["figure"]: row for row in compared.rows(0.0)}
    assert rows["training/better/p1/accuracy"]["detail"]["split"] == "validation"


def test_shapes_trained_alone_are_a_row_of_their_own() -> None:
    """A rate and a time of each; compared with the supernet size by size."""

    def alone(place: int, share: float) -> FinishedRun:
        run = run_of(f"alone_p{place}", 0, share)
        first = {"validation": run.validation[:1], "test": run.test[:1]}
        return run._replace(**first, test_hits=packed(run.hits("test")[:1]), cpu_s=10.0 * place)

    merged = of_all_shapes([alone(1, 0.6), alone(2, 0.8)])
    assert merged.test == [0.6, 0.8]
    assert merged.hits("test").mean(axis=1).tolist() == [0.6, 0.8]
    space = define_supernet("resnet_tiny").space
    points = [(space.smallest, 1_000_000), (space.largest, 4_000_000)]
    tuned = {f"alone_p{i}": Tuned(rate, {0.1: 0.5, 0.3: 0.5}) for i, rate in ((1, 0.1), (2, 0.3))}
    runs = {"deps": runs_of("deps", 0.7), "alone": [merged]}
    compared = CaseComparison(runs, tuned, points)
    line = compared.table().splitlines()[3]
    assert line.startswith("| alone | 0.1/0.3 | 60.0 | 80.0 | 70.0 | ")
    assert line.endswith("| 30 |")
    rows = {row["figure"]: row["value"] for row in compared.rows(0.0)}
    assert rows["training/alone/p1/over_deps"] == pytest.approx(-0.1)
    assert rows["training/alone/p2/over_deps"] == pytest.approx(0.1)
    assert rows["training/alone_p2/rate"] == 0.3
