from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from supernet import define_supernet
from supernet.cli import cost
from supernet.spec import parse_arch

APP = typer.Typer()
APP.command()(cost)
SPACE = define_supernet("resnet20_cifar").space


def test_cost_prints_one_json_object() -> None:
    result = CliRunner().invoke(APP, ["resnet20_cifar", "--arch", "d=2,e=0.5", "--json", "-"])
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert row["subnet_id"] == "d2-w1-e0.5-r32"
    assert row["resolution"] == 32
    assert row["macs"] > 0 < row["params"]


def test_an_arch_is_read_from_words_letters_or_json() -> None:
    assert parse_arch("largest", SPACE) == SPACE.largest
    assert parse_arch("smallest", SPACE) == SPACE.smallest
    assert parse_arch(json.dumps(SPACE.smallest.to_json()), SPACE) == SPACE.smallest
    assert parse_arch("d=1,w=0.5,e=0.5,r=32", SPACE) == SPACE.smallest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("huge", "'huge' is not LETTER=NUMBER"),
        ("d=x", "'x' is not a number"),
        ("d=9", "depth[0] is 9, allowed 1, 2, 3"),
        ("k=3", "resnet is not elastic in kernel"),
        ("{", "is not JSON"),
    ],
)
def test_an_arch_that_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_arch(text, SPACE)
    assert message in str(error.value)


def test_an_unknown_supernet_is_one_line_and_exit_code_2() -> None:
    result = CliRunner().invoke(APP, ["resnet21"])
    assert result.exit_code == 2


def test_a_file_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(APP, ["resnet20_cifar", "--json", str(tmp_path / "file" / "x")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
