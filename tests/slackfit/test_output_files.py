"""Output files appear whole or not at all."""

from __future__ import annotations

import pytest

from slackfit.output_files import write_text


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_text(path, "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "hal\udc80f way")
    assert path.read_text(encoding="utf-8") == "old\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_dash_is_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text("-", "rows\n")
    assert capsys.readouterr().out == "rows\n"
    assert list(tmp_path.iterdir()) == []
