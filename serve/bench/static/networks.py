"""The networks of part `static`, and which of their subnets a static server is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from serve.bench.actuation.bench_net import ofa_resnet50
from serve.bench.rows import Tell
from serve.bench.serving.setting import Setting, choose_slo_s, measured

_REPEATS = 5  # of each entry of the profile: the largest subnet's batch of 16 takes seconds


def ofa_resnet50_setting(out: Path, *, threads: int, tell: Tell) -> Setting:
    """Return OFA-ResNet50's six published subnets in fp32 and int8, made in `out` unless there.

    Weights are random, accuracies the published ones (`bench_net.py`). The SLO is ten times the
    largest int8 subnet's batch 1, up to the next 5 ms.
    """
    net = ofa_resnet50()
    if not (out / f"{net.name}-{len(net.served)}").exists():
        tell(f"making {net.name} with random weights, its ranges and its graphs")
    folder = net.saved(net.served, out)
    profile = out / f"{net.name}-profile.json"
    setting = measured(folder, None, profile, threads=threads, repeats=_REPEATS, tell=tell)
    slo_s = choose_slo_s(setting.profile, fastest_forms(setting)["largest"])
    return setting._replace(load=replace(setting.load, slo_s=slo_s))


def fastest_forms(setting: Setting) -> dict[str, str]:
    """Return the smallest, middle and largest subnet, each in its fastest precision here."""
    profile, size = setting.profile, setting.profile.max_batch_size
    known = set(profile.subnet_ids)
    floats = [i for i in sorted(known, key=profile.accuracy) if not i.endswith("-i8")]
    wanted = {"smallest": floats[0], "middle": floats[len(floats) // 2], "largest": floats[-1]}
    return {
        name: min(
            (i for i in (subnet_id, f"{subnet_id}-i8") if i in known),
            key=lambda i: profile.latency_s(i, size),
        )
        for name, subnet_id in wanted.items()
    }
