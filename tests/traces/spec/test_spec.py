from __future__ import annotations

import numpy as np
import pytest

from traces.files import write_trace
from traces.generators.arrivals import bursty
from traces.spec.spec import GENERATORS, SpecError, describe_generators, parse_spec
from traces.trace import TraceError


@pytest.mark.parametrize(
    ("spec", "rate_qps"),
    [
        ("poisson:rate=500,duration=60", 500),
        ("bursty:base=1500,variant=5550,cv2=8,duration=60", 7050),
        ("ramp:start=2500,end=7400,accel=250,cv2=8,duration=60", 6600),
        ("azure2019-shape:qps=640,duration=12,placement=uniform", 640),
    ],
)
def test_the_documented_specs_give_their_rates(spec, rate_qps):
    trace = parse_spec(spec, seed=1)
    assert trace.rate_qps == pytest.approx(rate_qps, rel=0.02)
    assert trace.metadata["spec"] == spec
    np.testing.assert_array_equal(trace.arrival_s, parse_spec(spec, seed=1).arrival_s)


def test_a_file_is_a_spec(tmp_path):
    path = tmp_path / "t.csv.gz"
    write_trace(path, bursty(5.0, 5.0, 2.0, 3.0))
    assert parse_spec(str(path)).duration_s == 3.0


@pytest.mark.parametrize(
    ("spec", "caret", "problem"),
    [
        ("poisson:rate=fast,duration=60", "fast", "rate must be a finite number"),
        ("poisson:rate=5,speed=60", "speed", "poisson has no key 'speed'"),
        ("poisson:rate=5,rate=60", "rate=60", "rate is given twice"),
        ("poisson:rate=5", None, "poisson still needs duration"),
        ("poisson", None, "poisson still needs rate, duration"),
        ("poisson:rate=5,", None, "expected key=value here"),
        ("poisson:rate=,duration=1", ",duration", "rate has no value"),
        ("poisson:rate", None, "expected key=value here"),
        ("poisson,rate=1", ",rate", "expected ':' here"),
        ("poison:rate=1", "poison", "'poison' is neither a generator nor a trace file"),
        ("azure2019-shape:qps=1,duration=1,placement=x", "x", "uniform or poisson"),
        ('azure2019:path="a,b', '"a', "this quote is never closed"),
        ("azure2019:path=f,top=1.5", "1.5", "top must be a whole number above 0"),
    ],
)
def test_errors_point_at_the_character(spec, caret, problem):
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    lines = str(caught.value).splitlines()
    assert problem in lines[0]
    assert lines[1] == f"  {spec}"
    at = len(spec) if caret is None else spec.rindex(caret)
    assert lines[2] == "  " + " " * at + "^"


def test_unknown_names_list_the_known_ones():
    with pytest.raises(SpecError, match=r"known generators: .*log; .*parquet"):
        parse_spec("nope")
    with pytest.raises(SpecError, match=r"keys of poisson:\n  rate: mean rate \(queries/s\)"):
        parse_spec("poisson:x=1")


def test_errors_of_a_generator_name_the_spec():
    with pytest.raises(TraceError, match=r"rate must be .* above 0.*in trace spec 'poisson:rate=0"):
        parse_spec("poisson:rate=0,duration=1")


def test_quoted_paths_may_hold_commas(tmp_path):
    with pytest.raises(TraceError, match=r"a,b\.csv: no such file"):
        parse_spec(f'azure2019:path="{tmp_path}/a,b.csv",qps=1,duration=1')


def test_every_generator_is_described():
    text = describe_generators()
    assert len(text.splitlines()) == len(GENERATORS)
    assert "azure2019:path=PATH,[qps=QPS],[duration=DURATION],[function=FUNCTION]" in text
    assert "[placement=uniform|poisson|gamma],[cv2=CV2]" in text
