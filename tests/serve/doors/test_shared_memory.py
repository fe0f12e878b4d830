"""Shared memory of clients: what may be named, by whom, and what happens when it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve.doors.shared_memory import SharedMemory
from serve.models.limits import RefusedError
from serve.models.request import SharedSlice


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    (tmp_path / "object").write_bytes(bytes(range(100)))
    return SharedMemory(folder=tmp_path)


def refusal(call, *arguments) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    assert caught.value.http_status == 400
    return caught.value


def test_a_slice_is_read_and_written_at_its_place(memory: SharedMemory, tmp_path: Path):
    memory.register("", "part", "/object", 10, 50)
    regions = memory.of(lambda: "")
    assert regions.read(SharedSlice("part", 5, 3)) == bytes([15, 16, 17])
    regions.write(SharedSlice("part", 48, 2), b"ab")
    assert (tmp_path / "object").read_bytes()[57:61] == bytes([57]) + b"ab" + bytes([60])


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "/..", "a/b", "/../object", "///object", "/a\0b", "sem.object", 7, None,
     "x" * 256],
)  # fmt: skip
def test_only_names_of_objects_are_keys(memory: SharedMemory, key: object):
    error = refusal(memory.register, "", "part", key, 0, 1)
    assert "allowed the name of a shared memory object" in error.message


def test_a_name_that_no_file_can_have_is_refused(memory: SharedMemory):
    assert "can't be opened" in refusal(memory.register, "", "x", "\ud800", 0, 1).message


@pytest.mark.parametrize(
    ("offset", "size", "text"),
    [
        (-1, 4, "offset is -1"),
        (1.5, 4, "offset is 1.5"),
        (True, 4, "offset is True"),
        (2**63, 4, "offset is 9223372036854775808"),
        (0, 0, "byte_size is 0"),
        (0, None, "byte_size is None"),
        (0, 101, "has 100 bytes, the region needs 101"),
        (60, 41, "has 100 bytes, the region needs 101"),
    ],
)
def test_a_region_lies_within_its_object(memory: SharedMemory, offset, size, text: str):
    assert text in refusal(memory.register, "", "part", "object", offset, size).message


def test_links_and_pipes_are_no_objects(memory: SharedMemory, tmp_path: Path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for key in ("link", "pipe", "folder"):
        refusal(memory.register, "", key, key, 0, 1)


def test_an_object_that_shrinks_or_goes_is_refused_not_fatal(memory: SharedMemory, tmp_path: Path):
    """Mapped, it would end the server with SIGBUS."""
    memory.register("", "part", "object", 0, 100)
    regions, part = memory.of(lambda: ""), SharedSlice("part", 0, 100)
    os.truncate(tmp_path / "object", 50)
    assert "has 50 bytes" in refusal(regions.read, part).message
    assert "has 50 bytes" in refusal(regions.write, part, b"x").message
    (tmp_path / "object").unlink()
    assert "No such file" in refusal(regions.read, part).message
    (tmp_path / "object").write_bytes(bytes(100))
    assert regions.read(part) == bytes(100), "made again under its key"


def test_regions_are_their_owners_alone(memory: SharedMemory):
    memory.register("token a", "part", "object", 0, 10)
    memory.register("token b", "part", "object", 0, 20)
    assert [r.byte_size for r in memory.status("token a")] == [10]
    memory.unregister("token a")
    assert memory.status("token a") == []
    assert [r.byte_size for r in memory.status("token b", "part")] == [20]
    part = SharedSlice("part", 0, 1)
    assert refusal(memory.of(lambda: "token a").read, part).reason == "bad_tensor"


def test_what_is_read_is_taken_from_the_budget(memory: SharedMemory):
    taken: list[int] = []
    memory.register("", "part", "object", 0, 100)
    memory.of(lambda: "", taken.append).read(SharedSlice("part", 0, 60))
    assert taken == [60]


def test_where_it_is_switched_off_it_says_so(tmp_path: Path):
    memory = SharedMemory("switched off", folder=tmp_path)
    assert "switched off" in refusal(memory.register, "", "part", "object", 0, 1).message
    memory.unregister("")
