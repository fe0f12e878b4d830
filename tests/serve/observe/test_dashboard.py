"""The Grafana dashboard: every query parses and names what a live server really exports."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.models.limits import REASONS
from slackfit.query import STATUSES

DASHBOARD = json.loads(Path("docs/deploy/grafana.json").read_text(encoding="utf-8"))
TARGETS = {
    f"{panel['title']}-{target['refId']}": (target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
INFER = "/v2/models/tiny/infer"
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}
KNOWN_VALUES = {
    "status": set(STATUSES),
    "reason": set(REASONS),
    "event": {"hit", "miss", "load", "eviction"},
}


async def scrape(door: Any, client: Any) -> str:
    assert (await client.post(INFER, json=BODY)).status_code == 200
    assert (await client.post(INFER, json=BODY, headers={"x-slo-ms": "0.1"})).status_code == 504
    return (await client.get("/metrics")).text


@pytest.fixture
def exported(timed_door, serving_door) -> dict[str, set[str]]:
    """The labels of every sample that a live server exports, by name."""

    async def main() -> str:
        door = timed_door()
        async with serving_door(door) as client:
            return await scrape(door, client)

    labels: defaultdict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(asyncio.run(main())):
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    return dict(labels)


def parse(expression: str) -> Any:
    """Parse a query after putting in what Grafana puts in."""
    filled = expression.replace("$__rate_interval", "1m").replace("$model", "tiny|other")
    assert "$" not in filled, "a variable that the dashboard does not have"
    return promql_parser.parse(filled)


def nodes(expression: Any) -> Iterator[Any]:
    """Walk a parsed query."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (part := getattr(expression, name, None)) is not None:
            yield from nodes(part)
    for argument in getattr(expression, "args", ()):
        yield from nodes(argument)


def test_queries_name_only_what_a_server_exports(exported: dict[str, set[str]]):
    used: set[str] = set()
    for title, (expression, _) in TARGETS.items():
        for node in nodes(parse(expression)):
            if not isinstance(node, promql_parser.VectorSelector):
                continue
            assert node.name in exported, f"{title}: no metric {node.name}"
            used.add(node.name)
            for matcher in node.matchers.matchers:
                assert matcher.name in exported[node.name], f"{title}: no label {matcher.name}"
                if matcher.name in KNOWN_VALUES:
                    values = set(matcher.value.split("|"))
                    assert values <= KNOWN_VALUES[matcher.name], f"{title}: {values}"
    families, shown = (
        {re.sub("_(bucket|sum|count)$", "", name) for name in names if name[-8:] != "_created"}
        for names in (exported, used)
    )
    assert families == shown, "a metric that the dashboard leaves out"


def test_labels_of_results_are_labels_of_the_metrics(exported: dict[str, set[str]]):
    for title, (expression, legend) in TARGETS.items():
        for node in nodes(parse(expression)):
            if not isinstance(node, promql_parser.AggregateExpr):
                continue
            names = [n.name for n in nodes(node) if isinstance(n, promql_parser.VectorSelector)]
            kept = set(node.modifier.labels)
            assert all(kept <= exported[name] for name in names), f"{title}: {kept}"
            shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
            assert shown <= kept, f"{title}: the legend shows {shown}, the query keeps {kept}"


def test_a_histogram_is_read_through_its_rate():
    for title, (expression, _) in TARGETS.items():
        for node in nodes(parse(expression)):
            if isinstance(node, promql_parser.Call) and node.func.name == "histogram_quantile":
                inner = [n for n in nodes(node) if isinstance(n, promql_parser.AggregateExpr)]
                assert "le" in inner[0].modifier.labels, title


@pytest.mark.parametrize(
    "broken", ["sum(rate(supernet_queries_total[1m])", "rate(supernet_queries_total)"]
)
def test_the_parser_refuses_what_prometheus_refuses(broken: str):
    with pytest.raises(ValueError):
        promql_parser.parse(broken)


def test_the_dashboard_is_laid_out_without_overlaps_and_ids_are_unique():
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        mine = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not mine & cells, panel["title"]
        cells |= mine
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_scrape_config_gives_rays_export_our_names():
    config = yaml.safe_load(Path("docs/deploy/prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (rule,) = jobs["ray"]["metric_relabel_configs"]
    renamed = re.fullmatch(rule["regex"], "ray_supernet_queries_total")
    assert renamed is not None
    assert renamed.expand(rule["replacement"].replace("$", "\\")) == "supernet_queries_total"
    assert re.fullmatch(rule["regex"], "ray_serve_num_requests") is None
