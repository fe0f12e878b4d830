"""Machine code on disk: what is spoilt is compiled anew, what can't be written is done without."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.compiled import code_cache
from slackfit.compiled.code_cache import kept, missing
from supernet.graphs import code_cache as twin

needs_numba = pytest.mark.skipif(bool(missing()), reason=missing() or "numba is there")


def doubled(value: int) -> int:
    return 2 * value


def hits(dispatcher) -> int:
    return sum(dispatcher.stats.cache_hits.values())


@needs_numba
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_file_that_was_cut_short_is_compiled_anew_and_replaced(
    tmp_path: Path, ending: str, share: float
) -> None:
    assert kept(doubled, tmp_path)(3) == 6
    (spoilt,) = tmp_path.rglob(f"*.{ending}")
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[: int(share * len(whole))])

    again = kept(doubled, tmp_path)
    assert (again(3), hits(again)) == (6, 0)
    after = kept(doubled, tmp_path)
    assert (after(3), hits(after)) == (6, 1)


@needs_numba
def test_machine_code_that_cannot_be_written_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core.caching import IndexDataCacheFile

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    assert kept(doubled, tmp_path)(4) == 8
    monkeypatch.undo()
    assert kept(doubled, tmp_path)(4) == 8
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(b"")
    monkeypatch.setattr(IndexDataCacheFile, "_save_index", full)
    assert kept(doubled, tmp_path)(4) == 8


def test_numba_that_fails_in_any_way_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise SystemError(f"{name} was built for another Python")

    monkeypatch.setattr(code_cache, "is_installed", lambda: True)
    monkeypatch.setattr(code_cache, "import_module", broken)
    code_cache._import_fault.cache_clear()
    assert missing() == "numba does not import here: numba was built for another Python"
    code_cache._import_fault.cache_clear()


def test_the_file_of_graphs_is_the_same() -> None:
    one, other = (Path(module.__file__ or "") for module in (code_cache, twin))
    assert one.read_text(encoding="utf-8") == other.read_text(encoding="utf-8")
