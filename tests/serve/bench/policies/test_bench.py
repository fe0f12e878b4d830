"""The benchmark's rows: their form, their bars, and that a bar that is missed is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.bench.policies import superserve_paper as paper
from serve.bench.policies.bars import RIVALS, bar_rows
from serve.bench.policies.bench import QUICK, PoliciesBench
from serve.bench.policies.twin_cases import NUM_CASES, generated_case
from slackfit.profile import LatencyProfile
from slackfit.simulation.devices import Devices
from traces.simulation import cells
from traces.simulation.cells import Cell, CellScore, run_cell
from traces.trace import TraceError

PROFILES = Path(__file__).parents[4] / "profiles"
SMALL = QUICK._replace(
    seeds=(0, 1), duration_s=0.3, rates_qps=(3000.0, 13_000.0), cv2s=(8.0,), maf_s=0.5, num_tiny=1
)


def bench(*parts: str) -> dict[str, dict]:
    rows = PoliciesBench(PROFILES, SMALL, processes=1, tell=lambda _: None).run(parts)
    assert all(set(row) == {"figure", "value", "unit", "detail"} for row in rows)
    assert len({row["figure"] for row in rows}) == len(rows)
    return {row["figure"]: row for row in rows}


def test_the_bars_name_cells_and_carry_the_bound():
    rows = bench("bars")
    assert rows["policies/bar/13000/cv8/ov0/attainment"]["value"] > 0.9
    assert 0.9 < rows["policies/bar/of_bound"]["value"] <= 1.0
    assert "bound" in rows["policies/bound/3000/cv8/ov0"]["detail"]
    assert rows["policies/utility/3000/cv8/ov0/drainfit"]["value"] > 0.78


def test_the_papers_numbers_stand_beside_ours():
    row = bench("bursty")["policies/bursty/5550/cv8/ov0/six/slackfit/attainment"]
    assert row["detail"].endswith("; paper 0.9992")
    assert 0.9 < row["value"] <= 1.0


def test_both_profiles_are_replayed_on_the_squeezed_day():
    rows = bench("maf")
    assert rows["policies/maf/resnet/ov0/fixed:smallest/accuracy"]["value"] == 0.7382
    assert rows["policies/maf/dynabert/ov0/drainfit/accuracy"]["value"] > 0.82


def test_tiny_instances_compare_with_the_optimum():
    rows = bench("tiny")
    assert rows["policies/bar/tiny_least_gap"]["value"] >= -1e-9
    assert rows["policies/tiny/gap/maxacc"]["value"] > 0


def test_cells_that_are_kept_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(tell=lambda _: None) -> list[dict]:
        scale = SMALL._replace(rates_qps=(3000.0,), duration_s=0.1)
        return PoliciesBench(PROFILES, scale, processes=1, tell=tell, out=tmp_path).run(["faults"])

    monkeypatch.setattr(paper, "FAULTS_S", 0.2)
    count = 0

    def killed_after_five(cell: Cell) -> CellScore:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        return run_cell(cell)

    monkeypatch.setattr(cells, "run_cell", killed_after_five)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(cells, "run_cell", run_cell)
    told: list[str] = []
    rows = run(told.append)
    assert told == ["part faults", "5 of 8 cells are there"]
    monkeypatch.setattr(cells, "run_cell", killed_after_five)
    assert run() == rows, "all are there"


@pytest.mark.slow
def test_a_day_is_planned_as_a_user_does_and_its_memory_is_watched():
    scale = SMALL._replace(day_s=30.0)
    rows = PoliciesBench(PROFILES, scale, processes=2, tell=lambda _: None).run(["day"])
    found = {row["figure"].rpartition("/")[2]: row for row in rows}
    assert 0 < found["wall"]["value"] < 300
    assert 50e6 < found["peak_memory"]["value"] < 2e9
    assert found["workers"]["value"] >= 1
    assert "40 candidates" in found["wall"]["detail"]
    assert found["wall"]["detail"].endswith("5 seeds")


def test_an_unknown_part_is_refused():
    with pytest.raises(TraceError, match=r"^part 'nope' is unknown, allowed bars, bursty, ramp"):
        bench("nope")


def made_up(**attainments: float) -> dict[str, list[CellScore]]:
    scores = {name: [CellScore(0.5, 0.7, 100, 0.0)] * 2 for name in ("drainfit", *RIVALS)}
    for name, attainment in attainments.items():
        scores[name.replace("smallest", "fixed:resnet-73.82")] = [
            CellScore(attainment, 0.7, 100, 0.0)
        ] * 2
    return scores


def test_a_missed_bar_is_counted_and_named():
    good = made_up(drainfit=1.0, smallest=0.9995)
    bad = made_up(drainfit=0.99, smallest=1.0, slackfit=0.995)
    rows = {r["figure"]: r for r in bar_rows({(0.0, 8.0, 1000.0): good, (0.0, 8.0, 2000.0): bad})}
    for name in ("attainment_less_smallest", "attainment_less_slackfit", "utility_less_best_rival"):
        detail = rows[f"policies/bar/{name}"]["detail"]
        assert "missed 1: 2000/cv8/ov0" in detail or "missed 2: 2000/cv8/ov0" in detail, detail
    assert rows["policies/bar/attainment_less_smallest"]["value"] == pytest.approx(-0.01)


def test_every_drawn_case_can_be_run_with_the_published_profile():
    resnet = LatencyProfile.load(PROFILES / "superserve_resnet_2080ti.json")
    cases = [generated_case(seed, resnet) for seed in range(NUM_CASES)]
    assert any("s0" not in case.profile.subnet_ids for case in cases)
    for case in cases:
        Devices(case.num_workers, case.devices, seed=case.seed)  # refuses what can't be
