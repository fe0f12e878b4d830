"""Published sizes of each space, by our counters: within 0.1 % or half a unit of the last digit."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from supernet import cost, define_supernet
from supernet.cli import cost as cost_command
from supernet.spec import parse_arch

# (supernet, arch, MACs in millions, parameters in millions); from the files of Once-for-All
# (github.com/mit-han-lab/once-for-all) and DepS (ECCV 2024), printed digits kept.
PUBLISHED = [
    ("ofa_mobilenet_v3", "largest", "566.2", "7.66"),
    ("ofa_mobilenet_v3", "smallest", "121.3", "3.41"),
    ("ofa_mobilenet_v3", "d=2,e=3", "151.3", "3.49"),
    ("ofa_mobilenet_v3", "d=2,e=4", "195.0", None),
    ("ofa_mobilenet_v3", "d=3,e=3", "222.0", None),
    ("ofa_mobilenet_v3", "d=2,e=6", "282.6", None),
    ("ofa_mobilenet_v3", "d=3,e=4", "289.4", None),
    ("ofa_mobilenet_v3", "d=4,e=3", "292.7", None),
    ("ofa_mobilenet_v3", "d=4,e=4", "383.7", None),
    ("ofa_mobilenet_v3", "d=3,e=6", "424.4", None),
    ("ofa_mobilenet_v3", "d=4,e=6", "566.2", None),
    ("ofa_mobilenet_v3_w1.2", "largest", "843.1", "10.7"),
    ("ofa_mobilenet_v3_w1.2", "smallest", "193.1", None),
    ("ofa_proxyless", "largest", "1004.9", "7.94"),
    ("ofa_proxyless", "smallest", "265.5", None),
    ("ofa_proxyless_w1.0", "largest", "606.6", None),
    ("ofa_proxyless_w1.0", "d=2,e=3,k=7", "185.0", None),
    ("ofa_resnet50", "largest", "7490", "48.1"),
    ("ofa_resnet50", "smallest", "962", "6.54"),
    ("ofa_resnet50", "d=1,e=0.25,w=2", "3780", "24.2"),
]


def assert_printed(millions: float, printed: str) -> None:
    digits = len(printed.partition(".")[2])
    tolerance = max(0.5 * 10**-digits, 1e-3 * float(printed))
    assert abs(millions - float(printed)) <= tolerance, (millions, printed)


@pytest.mark.parametrize(("name", "spec", "macs", "params"), PUBLISHED)
def test_a_space_has_its_published_size(
    name: str, spec: str, macs: str, params: str | None
) -> None:
    definition = define_supernet(name)
    counted = cost(definition, parse_arch(spec, definition.space))
    assert_printed(counted.macs / 1e6, macs)
    if params is not None:
        assert_printed(counted.params / 1e6, params)


def test_the_command_compares_at_224_unless_asked() -> None:
    app = typer.Typer()
    app.command()(cost_command)
    rows = []
    for spec in ("smallest", "smallest,r=128"):
        result = CliRunner().invoke(app, ["ofa_mobilenet_v3", "--arch", spec, "--json", "-"])
        assert result.exit_code == 0
        rows.append(json.loads(result.stdout))
    assert [row["resolution"] for row in rows] == [224, 128]
    assert rows[0]["params"] == rows[1]["params"]
    assert rows[0]["macs"] > 2.5 * rows[1]["macs"]
    assert rows[0]["subnet_id"] == "d2-e3-k3-r224"
