"""Outputs are tried before the work, and what a run came to is never lost to where it should go."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.output_files import OutputError, check_outputs, replacing, write_each, write_text


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A path below a file: nobody can write there, not even root."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out.json"


def kept_at(error: OutputError) -> Path:
    return Path(str(error).rpartition("kept as ")[2])


def test_what_can_be_written_passes_and_leaves_nothing(tmp_path: Path):
    check_outputs(tmp_path / "new" / "a.json", None, "-", folders=[tmp_path / "other", None])
    check_outputs(tmp_path / "a.json", folders=[tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_keeps_its_content(tmp_path: Path):
    (tmp_path / "a.json").write_text("before")
    check_outputs(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "before"


def test_what_cannot_be_written_is_named(tmp_path: Path, blocked: Path):
    with pytest.raises(OutputError, match=r"out\.json: can't be written"):
        check_outputs(blocked)
    with pytest.raises(OutputError, match="is a folder, allowed the name of a file"):
        check_outputs(tmp_path)
    with pytest.raises(OutputError, match=r"file: can't be written"):
        check_outputs(folders=[blocked.parent])


def test_a_text_without_a_place_is_kept_and_it_is_said_where(blocked: Path):
    with pytest.raises(OutputError, match=r"out\.json.*kept as") as caught:
        write_text(blocked, "an hour's work")
    assert kept_at(caught.value).read_text() == "an hour's work"


def test_a_text_for_a_full_disk_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, *_: object, **__: object) -> int:
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device.*kept as") as caught:
        write_text(tmp_path / "a.json", "an hour's work")
    assert kept_at(caught.value).read_text() == "an hour's work"
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_any_kind_is_kept(blocked: Path):
    with pytest.raises(OutputError) as caught, replacing(blocked) as temporary:
        temporary.write_bytes(b"\x00\x01")
    assert kept_at(caught.value).read_bytes() == b"\x00\x01"
    assert kept_at(caught.value).name == "out.json"


def test_every_write_is_made_whatever_becomes_of_the_others(tmp_path: Path, blocked: Path):
    with pytest.raises(OutputError, match=r"out\.json") as caught:
        write_each(
            lambda: write_text(blocked, "first"),
            lambda: write_text(tmp_path / "second", "second"),
            lambda: write_text(blocked, "third"),
        )
    assert (tmp_path / "second").read_text() == "second"
    assert str(caught.value).count("kept as") == 2


def test_a_bug_is_no_failure_to_write():
    with pytest.raises(ZeroDivisionError):
        write_each(lambda: 1 / 0)
