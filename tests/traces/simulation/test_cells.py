from __future__ import annotations

import pytest

from traces.simulation.cells import Cell, estimate, run_cells


def cells(profile: str) -> list[Cell]:
    return [
        Cell(
            policy, f"poisson:rate={rate},duration=0.3", seed, profile, 0.036, 8, overhead_s, dense
        )
        for policy in ("slackfit", "drainfit", "slackfit@num_buckets=40")
        for rate, overhead_s, dense in ((2000, 0.0, 0), (9000, 0.006, 20))
        for seed in (0, 1)
    ]


def test_processes_give_the_scores_of_one_process_in_the_order_asked_for(resnet_file):
    asked = cells(resnet_file)
    seen: list[tuple[int, int]] = []
    alone = run_cells(asked, processes=1, progress=lambda *at: seen.append(at))
    together = run_cells(asked, processes=2)
    assert [s[:3] for s in alone] == [s[:3] for s in together]  # less the processor time
    assert seen[-1] == (12, 12)
    assert len({s.utility for s in alone}) > 6


def test_the_interval_is_students(resnet_file):
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half_width == pytest.approx(2.776 * 1.5811388 / 5**0.5, rel=1e-4)
    assert estimate([7.0]).half_width == 0.0
