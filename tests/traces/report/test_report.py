from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest

from traces.report.page import unique_labels
from traces.report.plots import plane
from traces.report.report import read_reports, write_report_html, write_report_json
from traces.report.table import report_table
from traces.trace import TraceError

TRACE = {"source": "generator poisson", "rate_qps": 50.0, "metadata": {"rate_qps": 51.0}}


class Outline(HTMLParser):
    """Collects attributes that could fetch something, checks nesting, counts pictures."""

    VOID = ("meta", "link", "br", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]


@pytest.fixture
def page(tmp_path, make_report) -> str:
    extra = {
        "measured_accuracy": 0.95,
        "generator_lag_ms": {"p50": 0.1, "p99": 0.9, "max": 2.0},
        "command": "supernet replay --trace <x> & more",
        "config": {"workers": 1},
        "trace": TRACE,
    }
    reports = [make_report("slackfit", **extra), make_report("fixed:d2-w3", **extra)]
    path = tmp_path / "out" / "report.html"
    write_report_html(path, reports, title="Demo <1>")
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_outside(page):
    outline = Outline()
    outline.feed(page)
    assert {link for link in outline.links if not link.startswith("#")} == {"data:,"}
    assert "script" not in outline.tags
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_every_picture_is_there_and_not_empty(page):
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 2 + 2 * (5 + 2)
    for picture in pictures:
        assert len(re.findall(r"<path ", picture)) > 5
        assert len(re.findall(r"<text", picture)) >= 4
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {a or b for a, b in references} <= set(ids)


def test_the_page_says_the_figures_in_words(page):
    assert "Demo &lt;1&gt;" in page
    assert "slackfit answered 66.00\N{NO-BREAK SPACE}% of 200 queries within 50 ms" in page
    assert "95.00\N{NO-BREAK SPACE}%" in page
    assert "infeasible: 34" in page
    assert "supernet replay --trace &lt;x&gt; &amp; more" in page
    assert "rate_qps asked for" in page
    assert page.index("d0-w1 (91.00") < page.index("d2-w3 (97.00")


def test_the_same_reports_give_the_same_page(tmp_path, make_report):
    for name in ("a.html", "b.html"):
        write_report_html(tmp_path / name, [make_report()])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_invalid_and_partial_runs_are_flagged(tmp_path, make_report):
    report = make_report(invalid_reason="the generator sent late", is_partial=True)
    write_report_html(tmp_path / "r.html", [report])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "this run is invalid, the generator sent late." in page
    assert "this run was interrupted" in page


def test_a_run_in_which_nothing_was_executed_has_a_page(tmp_path, make_report):
    report = make_report()
    empty = len(report["series"]["t_s"])
    report |= {
        "slo_attainment": 0.0,
        "mean_serving_accuracy": 0.0,
        "utility": 0.0,
        "outcomes": {"on_time": 0, "late": 0, "dropped": 0, "rejected": 0, "failed": 200},
        "latency_ms": dict.fromkeys(("p50", "p90", "p99", "max")),
        "latency_cdf": {"ms": [], "fraction": []},
        "subnets": {},
        "reasons": {"ConnectionError: refused": 200},
    }
    report["series"] |= {"accuracy": [None] * empty, "on_time": [0] * empty, "subnets": {}}
    write_report_html(tmp_path / "r.html", [report])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "nothing was executed" in page


def test_reports_round_trip_through_json(tmp_path, make_report):
    reports = [make_report("a"), make_report("b")]
    write_report_json(tmp_path / "report.json", reports)
    assert read_reports(tmp_path) == reports
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_report_that_is_not_finite_is_not_written(tmp_path, make_report):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report_json(tmp_path / "report.json", [make_report(x=float("nan"))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "holds no reports"),
        ("[3]", "entry 0 is a int, expected an object"),
        (json.dumps([{"policy": "x"}]), "lacks slo_attainment, "),
    ],
)
def test_a_file_that_holds_no_report_is_named(tmp_path, text, message):
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=message) as caught:
        read_reports(path)
    assert str(path) in str(caught.value)


def test_equal_policies_are_told_apart_by_their_run():
    assert unique_labels([{"policy": "a"}, {"policy": "b"}]) == ["a", "b"]
    runs = [{"policy": "a", "run": "live"}, {"policy": "a", "run": "sim"}]
    assert unique_labels(runs) == ["a (live)", "a (sim)"]
    assert unique_labels([{"policy": "a"}, {"policy": "a"}]) == ["a #1", "a #2"]


def test_runs_in_deep_folders_are_named_by_what_differs():
    """A path of fifty letters left a plot no room beside it, and the page was not written."""
    deep = "/tmp/" + "/".join("0123456789" * 3)
    runs = [{"policy": "a", "run": f"{deep}/{name}"} for name in ("x", "y/report.json", "x")]
    assert unique_labels(runs) == ["a (x) #1", "a (y/report.json)", "a (x) #2"]
    (label,) = unique_labels([runs[0], {"policy": "b"}])[:1]
    assert label == "a"
    odd = [{"policy": "a", "run": "b" * 80}, {"policy": "a", "run": ""}]
    assert unique_labels(odd) == [f"a (...{'b' * 29})", "a"]


def test_a_server_that_names_no_subnet_is_not_called_idle(tmp_path, make_report):
    report = make_report() | {"subnets": {}}
    report["series"] |= {"subnets": {}}
    write_report_html(tmp_path / "r.html", [report])
    assert "the server did not say which" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_an_invalid_run_is_marked_everywhere_and_never_the_headline(tmp_path, make_report):
    best = make_report("fast", invalid_reason="the generator sent late", is_valid=False)
    other = make_report("slow") | {"utility": best["utility"] / 2}
    for name, reports in (("two", [best, other]), ("one", [best])):
        write_report_html(tmp_path / f"{name}.html", reports)
    two = (tmp_path / "two.html").read_text(encoding="utf-8")
    lead = re.search(r'<p class="lead">(.*?)</p>', two).group(1)
    assert "slow answered" in lead
    assert "fast" not in lead
    assert "No other run of 2 is valid" in lead
    named = re.findall(r"fast[^<]{0,12}", two)
    assert len(named) > 5
    assert all(text.startswith("fast (INVALID)") for text in named)
    one = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert re.search(r'<p class="lead">This run is invalid', one)


def test_the_terminal_marks_what_the_page_marks(make_report):
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    invalid = make_report("fast", invalid_reason="late", is_valid=False)
    console.print(report_table([invalid, make_report("slow", is_partial=True)]))
    text = console.export_text()
    assert "fast (INVALID)" in text
    assert "slow (partial)" in text
    assert "p95 ms" in text
    assert "latencies are of executed queries" in text


def test_classes_repeats_and_quantiles_of_all_stand_on_the_page(tmp_path, make_report):
    figures = {
        "num_queries": 10, "slo_attainment": 0.25, "mean_serving_accuracy": 0.9, "slo_ms": 20.0,
        "utility": 0.225, "latency_ms": {"p50": 1.0, "p90": 2.0, "p95": 3.0, "p99": None},
        "p99_all_ms": None,
    }  # fmt: skip
    runs = [
        make_report(
            "slackfit",
            repeat=k,
            tenants={"web": figures, "<job>": figures},
            latency_all_ms={"p50": 1.0, "p90": 2.0, "p95": None, "p99": None},
            max_waiting=17,
            slos_ms=[20.0, 50.0],
        )
        for k in (1, 2)
    ]
    write_report_html(tmp_path / "r.html", runs)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "within their SLOs (20 to 50 ms)" in page
    assert "slackfit, repeat 2" in page
    assert "&lt;job&gt;" in page
    assert "no answer" in page
    assert "at most 17 at any moment" in page
    assert re.search(r"<h2>Repeats</h2>.*Attainment.*66.00.*to 66.00", page, flags=re.DOTALL)


def test_labels_of_close_points_do_not_collide():
    """Eight runs at one spot, with long names: none on another, on the ticks or off the picture."""
    names = [f"fixed:d1-w0.25-e0.25 number {i}" for i in range(8)]
    reports = [
        {"mean_serving_accuracy": 0.9 + 0.00001 * i, "slo_attainment": 1.0 - 0.0001 * i}
        for i in range(8)
    ]
    svg = plane(reports, names, [(0.9, 1.0)] * 8)
    boxes = []
    for name in names:
        found = re.search(rf'x="([\d.-]+)" y="([\d.-]+)"[^>]*>{name}<', svg)
        x, y = float(found[1]), float(found[2])
        boxes.append((x, x + 5.0 * len(name), y - 8, y + 2))
    for i, a in enumerate(boxes):
        assert a[0] >= 35, "left of the axes stand the ticks"
        assert a[1] <= 374
        assert a[2] >= 0
        for b in boxes[:i]:
            assert not (a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3])


def test_the_page_has_a_dark_mode(page):
    assert "@media (prefers-color-scheme: dark)" in page
    assert "figure svg" in page
