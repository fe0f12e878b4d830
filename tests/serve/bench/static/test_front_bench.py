"""The front against static networks: who is above whom, what is measured once, what is absent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serve.bench.journal import Journal
from serve.bench.serving.load import LoadScore
from serve.bench.serving.peers import SIZES, LoadPoint, grid
from serve.bench.serving.setting import Setting, choose_slo_s, measured
from serve.bench.static import front_bench
from serve.bench.static.front_bench import OURS, FrontBench, FrontScale, is_above, verdict_rows
from serve.bench.static.lean_bench import lean_server
from serve.bench.static.servers import MissingPeerError, Use
from slackfit.profile import LatencyProfile

SCALE = FrontScale(loads=(0.05,), duration_s=0.6, tuning_s=0.2, capacity_s=0.4)


def score(attainment: float, accuracy: float, half_width: float = 0.01) -> LoadScore:
    interval = (attainment - half_width, attainment + half_width)
    return LoadScore(
        round(1000 * attainment), 1000, accuracy, None, 0.01, 0.02, 0.001, True, 0.2, 0.5,
        interval, {"on_time": round(1000 * attainment)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (score(0.92, 0.80), True),  # 0.02 is more than 0.0141
        (score(0.91, 0.80), False),  # within the interval of the difference
        (score(0.99, 0.7504), False),  # as accurate
        (score(0.99, 0.74), False),
        (score(0.80, 0.80), False),
    ],
)
def test_above_is_in_both_and_by_more_than_the_interval(other: LoadScore, expected: bool) -> None:
    assert is_above(other, score(0.90, 0.75)) is expected


def test_a_verdict_names_what_is_above_and_the_best() -> None:
    static = {"fixed_largest": score(0.5, 0.79), "ray_middle": score(0.95, 0.78)}
    above, utility = verdict_rows("cell/slackfit", score(0.9, 0.76), static)
    assert (above["value"], utility["unit"]) == (1, "fraction")
    assert above["detail"].endswith("of 2: ray_middle")
    assert utility["value"] == pytest.approx(0.9 * 0.76 - 0.95 * 0.78)
    assert "of ray_middle" in utility["detail"]
    assert verdict_rows("cell/slackfit", score(0.9, 0.76), {}) == []


def test_the_slo_may_follow_another_subnet(profile: LatencyProfile) -> None:
    assert choose_slo_s(profile, "middle") == pytest.approx(0.02)


@pytest.fixture(scope="module")
def setting(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    path = tmp_path_factory.mktemp("front") / "profile.json"
    found = measured(checkpoint_folder, None, path, threads=1, repeats=3, tell=lambda text: None)
    return found._replace(load=replace(found.load, warmup_s=0.1, slo_s=5.0))


class LeanBatcher:
    """A peer that is there: one lean server, whatever is asked for, which it remembers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, LoadPoint]] = []

    @contextlib.contextmanager
    def __call__(self, setting: Setting, subnet_ids: Sequence[str]) -> Iterator[Use]:
        with lean_server(setting, subnet_ids[0], None) as url:

            @contextlib.contextmanager
            def use(subnet_id: str, point: LoadPoint) -> Iterator[str]:
                assert subnet_id in subnet_ids
                self.asked.append((subnet_id, point))
                yield url

            yield use


@contextlib.contextmanager
def absent(setting: Setting, subnet_ids: Sequence[str]) -> Iterator[Use]:
    raise MissingPeerError("it is not there: `make it`")
    yield


@pytest.mark.slow
def test_every_choice_meets_every_load_and_what_is_absent_says_so(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_bench, "is_disturbed", lambda score: False)  # whoever else runs
    batcher, told = LeanBatcher(), list[str]()
    points = grid(setting.load.slo_s, setting.profile.max_batch_size)
    journal = Journal(tmp_path / "front.jsonl", {})
    journal.once("front/capacity_qps", lambda: 1000.0)  # 50 queries/s: no core is full
    for size in SIZES[:2]:  # so that one subnet is tuned by starting servers
        for number, point in enumerate(points):
            journal.once(f"front/tuning/there/0.05/{size}/{point}", lambda n=number: float(n == 2))
    bench = FrontBench(
        setting,
        journal,
        scale=SCALE,
        tell=told.append,
        batchers={"there": batcher, "absent": absent},
    )
    bench.run()
    rows = {row["figure"]: row for row in bench.rows()}
    cell = "static/tiny/load5"
    for system in (*OURS, *(f"{s}_{size}" for s in ("fixed", "there") for size in SIZES)):
        assert rows[f"{cell}/{system}/attainment"]["value"] > 0.8, system
        assert 0 < rows[f"{cell}/{system}/accuracy"]["value"] <= 1
    assert str(points[2]) in rows[f"{cell}/there_smallest/attainment"]["detail"]
    assert rows["static/tiny/absent"]["unit"] == "skipped"
    assert rows["static/tiny/absent"]["detail"] == "it is not there: `make it`"
    assert f"{cell}/absent_largest/attainment" not in rows
    for policy in OURS:
        assert "of 6:" in rows[f"{cell}/{policy}/static_choices_above"]["detail"]
    assert [point for _, point in batcher.asked][:5] == list(points), "the largest is tuned"
    assert len(batcher.asked) == len(points) + len(SIZES)
    measured_before = len(told)
    again = FrontBench(setting, journal, scale=SCALE, tell=told.append, batchers={"there": batcher})
    again.run()
    assert len(told) == measured_before + 1, "nothing is measured twice"
