"""Results against bars: what holds, what is missed, what is absent and why, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve.bench.gpu.__main__ import main
from serve.bench.gpu.bars import BarError, compare, read_bars, read_rows, summary
from serve.bench.rows import absent_row, row

HEAD = "| rows | bar | of | on | because |\n|---|---|---|---|---|\n"


def gpu_row(figure: str, value: float | None, **also: Any) -> dict[str, Any]:
    if value is None:
        return absent_row(figure, "ms", "no such thing") | {"driver": "570.1"} | also
    return row(figure, value, "", "") | {"driver": "570.1"} | also


def cpu_row(figure: str, value: float) -> dict[str, Any]:
    return gpu_row(figure, value, driver="")


def page(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text("# Text\n\n| a | b |\n|---|---|\n\n" + HEAD + "\n".join(lines) + "\n\nmore\n")
    return path


def verdicts(tmp_path: Path, rows: list[dict[str, Any]], *lines: str) -> list[tuple[str, str]]:
    return [(v.state, v.figure) for v in compare(rows, read_bars(page(tmp_path, *lines)))]


def test_each_row_that_a_pattern_names_is_judged_by_itself(tmp_path: Path) -> None:
    rows = [gpu_row("gpu/a/x", 1.0), gpu_row("gpu/b/x", 1.1), gpu_row("gpu/b/y", 9.0)]
    line = "| `gpu/*/x` | <= 1.0 | each | GPU | why |"
    assert verdicts(tmp_path, rows, line) == [("holds", "gpu/a/x"), ("missed", "gpu/b/x")]
    at_least = "| `gpu/*/x`, `gpu/b/y` | >= 1.05 | each | any | why |"
    assert verdicts(tmp_path, rows, at_least) == [
        ("missed", "gpu/a/x"),
        ("holds", "gpu/b/x"),
        ("holds", "gpu/b/y"),
    ]


def test_a_median_is_one_verdict_and_says_of_how_many(tmp_path: Path) -> None:
    rows = [gpu_row(f"gpu/{n}/x", value) for n, value in enumerate((0.9, 1.04, 5.0))]
    bars = read_bars(page(tmp_path, "| `gpu/*/x` | <= 1.04 | median | GPU | why |"))
    (verdict,) = compare(rows, bars)
    assert str(verdict) == "holds   gpu/*/x: 1.04, bar <= 1.04 (median of 3)"
    assert compare([*rows, gpu_row("gpu/3/x", 5.0)], bars)[0].state == "missed"


def test_what_is_not_there_has_no_value_or_is_of_elsewhere_is_absent_and_says_why(
    tmp_path: Path,
) -> None:
    bars = read_bars(
        page(
            tmp_path,
            "| `gpu/there` | <= 1 | each | GPU | why |",
            "| `gpu/none` | <= 1 | each | GPU | why |",
            "| `gpu/made_up` | >= 1.8 | each | CPU | why |",
        )
    )
    rows = [gpu_row("gpu/there", None), cpu_row("gpu/made_up", 1.9)]
    found = compare(rows, bars)
    assert [str(verdict) for verdict in found] == [
        "absent  gpu/there: no such thing",
        "absent  gpu/none: no such row",
        "holds   gpu/made_up: 1.9, bar >= 1.8 (why)",
    ]
    assert summary(found).splitlines()[-1] == "bars: 1 hold, 0 missed, 2 absent"
    of_cpu = compare([cpu_row("gpu/there", 0.5), gpu_row("gpu/made_up", 0.5)], bars)
    assert [verdict.text for verdict in of_cpu] == [
        "measured on a CPU, the bar is for a GPU",
        "no such row",
        "measured on a GPU, the bar is for a CPU",
    ]


def test_a_median_leaves_out_what_has_no_value(tmp_path: Path) -> None:
    rows = [gpu_row("gpu/0/x", 1.0), gpu_row("gpu/1/x", None)]
    line = "| `gpu/*/x` | <= 1 | median | GPU | why |"
    assert verdicts(tmp_path, rows, line) == [("absent", "gpu/1/x"), ("holds", "gpu/*/x")]


def test_a_figure_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BarError, match="more than once: gpu/x"):
        compare([gpu_row("gpu/x", 1.0), gpu_row("gpu/x", 2.0)], [])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("| `gpu/x` | < 1 | each | GPU | why |", "a bar like <= 1.05, got '`gpu/x`' and '< 1'"),
        ("| gpu/x | <= 1 | each | GPU | why |", "`names of rows`"),
        ("| `gpu/x` | <= 1 | all | GPU | why |", "of is 'all', allowed each, median"),
        ("| `gpu/x` | <= 1 | each | TPU | why |", "on is 'TPU', allowed any, CPU, GPU"),
        ("| `gpu/x` | <= 1 | each | GPU |", "4 columns, expected 5"),
    ],
)
def test_a_bad_line_of_the_table_says_where_it_is(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(BarError, match="line 8") as raised:
        read_bars(page(tmp_path, line))
    assert said in str(raised.value)


def test_a_page_without_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BarError, match="run this in a checkout"):
        read_bars(tmp_path / "none.md")
    (tmp_path / "other.md").write_text("| rows | bar |\n")
    with pytest.raises(BarError, match="0 tables with the columns rows, bar, of, on, because"):
        read_bars(tmp_path / "other.md")


@pytest.mark.parametrize("text", ["{", "{}", '[{"figure": "a"}]', "[1]"])
def test_a_file_that_holds_no_rows_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(BarError, match="rows"):
        read_rows(path)


def test_the_command_says_row_by_row_and_fails_when_one_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    figure = "gpu/bytes/ofa_resnet50/random/n500/one_copy_norms_float16"
    path.write_text(json.dumps([row(figure, 274.0, "MB", "")]))
    assert main(["--check", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"holds   {figure}: 274, bar <= 275" in told
    assert "absent  gpu/disagreements: no such row" in told
    path.write_text(json.dumps([row(figure, 276.0, "MB", "")]))
    assert main(["--check", str(path)]) == 1
    assert f"missed  {figure}: 276, bar <= 275" in capsys.readouterr().out
    assert main(["--check", str(tmp_path / "none.json")]) == 2
    assert "none.json: not a file of rows" in capsys.readouterr().err


def test_the_published_rows_of_bytes_hold() -> None:
    rows = read_rows(Path("benchmarks/results/2026-11-30-gpu-bytes.json"))
    states = [v.state for v in compare(rows, read_bars()) if v.figure.startswith("gpu/bytes/")]
    assert states == ["holds", "holds"]
