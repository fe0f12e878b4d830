"""`VllmNames`: a decoder's metrics once more, by the names that vLLM gives them.

Dashboards and the endpoint pickers of inference gateways read those, and work unchanged. Values are
ours: read from our own metrics when Prometheus asks, nothing is counted twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

_OURS = "supernet_stream_"
_THEIRS = "vllm:"


class Alias(NamedTuple):
    """Their name; which of our labels stays, under which name of theirs; what is left is summed."""

    name: str
    label: str = ""
    theirs: str = ""
    only: tuple[str, str] | None = None  # series with this value of a label


ALIASES: dict[str, tuple[Alias, ...]] = {
    "running": (Alias("num_requests_running"),),
    "waiting": (Alias("num_requests_waiting"),),
    "kv_share": (Alias("kv_cache_usage_perc"),),
    "preemptions": (Alias("num_preemptions"),),
    "prompt_tokens": (Alias("prompt_tokens"),),
    "outputs": (Alias("generation_tokens"),),
    "finished": (Alias("request_success", "finish", "finished_reason"),),
    "ended": (Alias("admission_rejections", "reason", "reason", ("outcome", "rejected")),),
    "prefix_queried_tokens": (Alias("prefix_cache_queries"),),
    "prefix_hit_tokens": (Alias("prefix_cache_hits"),),
    "iteration_tokens": (Alias("iteration_tokens_total"),),
    "first_output_seconds": (Alias("time_to_first_token_seconds"),),
    "gap_seconds": (Alias("inter_token_latency_seconds"),),
    "period_seconds": (Alias("request_time_per_output_token_seconds"),),
    "seconds": (Alias("e2e_request_latency_seconds"),),
    "queue_seconds": (Alias("request_queue_time_seconds"),),
    "prefill_seconds": (Alias("request_prefill_time_seconds"),),
    "decode_seconds": (Alias("request_decode_time_seconds"),),
}
"""By our names, less what they all begin with."""


class VllmNames:
    """A collector of prometheus_client that reads another registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield what is known by their names."""
        for family in self._registry.collect():
            if family.name.startswith(_OURS):
                for alias in ALIASES.get(family.name.removeprefix(_OURS), ()):
                    yield _renamed(family, alias)


def _renamed(family: Metric, alias: Alias) -> Metric:
    sums: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for sample in family.samples:
        suffix = sample.name.removeprefix(family.name)
        if suffix == "_created":
            continue
        if alias.only is not None and sample.labels.get(alias.only[0]) != alias.only[1]:
            continue
        labels = [("model_name", sample.labels.get("model", "")), ("engine", "0")]
        if alias.label:
            labels.append((alias.theirs, sample.labels.get(alias.label, "")))
        if "le" in sample.labels:
            labels.append(("le", sample.labels["le"]))
        sums[suffix, tuple(labels)] += sample.value
    renamed = Metric(_THEIRS + alias.name, family.documentation, family.type)
    for (suffix, labels), value in sums.items():
        renamed.add_sample(renamed.name + suffix, dict(labels), value)
    return renamed
