from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from traces.burstiness import count_moments, counts_per_window
from traces.cli import app
from traces.generators.arrivals import gamma, poisson
from traces.generators.cascade import Cascade, division_of
from traces.generators.fit import check_fit, dispersion_interval, fit
from traces.generators.patterns import mmpp, mmpp_dispersion
from traces.spec.spec import parse_spec
from traces.trace import TraceError

MMPPS = [(100.0, 900.0, 0.8, 0.2), (200.0, 2000.0, 0.09, 0.01), (0.0, 600.0, 0.3, 0.3)]


@pytest.mark.parametrize("parameters", MMPPS)
def test_the_dispersion_of_a_known_process_is_met_at_every_scale(parameters):
    cascade = fit(mmpp(*parameters, 800.0, seed=4))
    made = [cascade.generate(seed=seed) for seed in range(2)]
    for window_s in (0.001, 0.01, 0.1, 1.0):
        found = np.mean([count_moments(t, window_s).dispersion for t in made])
        assert found == pytest.approx(mmpp_dispersion(*parameters, window_s), rel=0.15), window_s
    share = parameters[3] / (parameters[2] + parameters[3])
    rate_qps = parameters[0] + share * (parameters[1] - parameters[0])
    assert np.mean([t.rate_qps for t in made]) == pytest.approx(rate_qps, rel=0.05)


@pytest.mark.parametrize("cv2", [0.0, 0.25, 1.0, 8.0])
def test_renewals_are_met_whether_even_or_bursty(cv2):
    trace = gamma(300.0, cv2, 400.0, seed=2)
    made = fit(trace).generate(seed=1)
    for window_s in (0.01, 0.1, 1.0):
        wanted = count_moments(trace, window_s).dispersion
        assert count_moments(made, window_s).dispersion == pytest.approx(wanted, rel=0.2, abs=0.03)


def test_the_tail_of_a_stream_with_a_highest_rate_is_not_overdone():
    check = check_fit(mmpp(100.0, 900.0, 0.8, 0.2, 600.0, seed=1))
    for row in check["tail"]:
        assert row["fitted"][-1] <= 1.6 * row["held_out"][-1]


def test_a_fitted_generator_round_trips_and_scales(tmp_path):
    cascade = fit(gamma(200.0, 4.0, 100.0, seed=1))
    assert Cascade.from_json(cascade.to_json()) == cascade
    path = tmp_path / "fit.json"
    path.write_text(cascade.to_json(), encoding="utf-8")
    trace = parse_spec(f"fitted:path={path},duration=20,rate=800", seed=3)
    assert trace.duration_s == 20.0
    assert len(trace) == pytest.approx(16_000, rel=0.1)
    assert trace.metadata["synthetic"] is True
    np.testing.assert_array_equal(
        trace.arrival_s, parse_spec(f"fitted:path={path},duration=20,rate=800", seed=3).arrival_s
    )
    path.write_text('{"format": 2}', encoding="utf-8")
    with pytest.raises(TraceError, match="not a fitted generator .expected format 1.; trace fit"):
        parse_spec(f"fitted:path={path}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rate_qps", "many", "not a fitted generator .must be real number, not str"),
        ("rate_qps", None, "not a fitted generator .must be real number"),
        ("top_s", 0, "top_s is 0, expected a finite number above 0"),
        pytest.param("duration_s", 10**400, "not a fitted generator .int too large", id="huge"),
        ("top_correlation", 1, "top_correlation is 1, expected -1 to 1"),
        ("divisions", [{"parts": 0, "part_s": 0.1, "laws": [[1, 0.5, 0]]}], "parts is 0, expected"),
        ("divisions", [{"parts": 2, "part_s": 0.1, "laws": []}], "laws: expected at least one"),
        (
            "divisions",
            [{"parts": 2, "part_s": 0.1, "laws": [["x", 0, 0]]}],
            "not a fitted generator",
        ),
    ],
)
def test_a_generator_that_no_fit_writes_is_refused(tmp_path, key, value, message):
    """Each of these had ended in a traceback, or was taken as it is."""
    fields = json.loads(fit(gamma(200.0, 4.0, 100.0, seed=1)).to_json()) | {key: value}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(TraceError, match=message):
        parse_spec(f"fitted:path={path}")


def test_a_division_knows_chance_from_order():
    parents = np.full(1000, 10)
    alone = np.tile([10, 0], 1000)
    evenly = np.full(2000, 5)
    assert division_of(parents, alone, 1.0).laws[-1].together == pytest.approx(1.0)
    assert division_of(parents, evenly, 1.0).laws[-1].even == pytest.approx(1.0)


def test_the_interval_of_a_poisson_stream_holds_one():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(40):
        counts = counts_per_window(poisson(50.0, 100.0, seed=seed), 0.1)
        low, high = dispersion_interval(counts, rng)
        inside += low <= 1.0 <= high
    assert inside >= 33


def test_too_few_arrivals_are_refused():
    with pytest.raises(TraceError, match="has 5[0-9] arrivals; fitting its burstiness needs 200"):
        fit(gamma(5.0, 0.5, 11.0))


def test_the_verb_shows_the_fit_and_writes_the_generator(tmp_path):
    out = tmp_path / "fit.json"
    spec = "mmpp:low=100,high=900,low_s=0.8,high_s=0.2,duration=60"
    shown = CliRunner().invoke(app, ["trace", "fit", spec, "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "inside" in shown.stdout
    assert Cascade.from_json(out.read_text(encoding="utf-8")).duration_s == 60.0
    as_json = CliRunner().invoke(app, ["trace", "fit", spec, "--json", "-", "--blocks", "5"])
    check = json.loads(as_json.stdout)
    assert {row["window_s"] for row in check["dispersion"]} == {0.001, 0.01, 0.1}
    assert CliRunner().invoke(app, ["trace", "fit", spec, "--holdout", "2"]).exit_code == 2
