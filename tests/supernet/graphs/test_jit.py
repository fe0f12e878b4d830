"""Machine code of a graph's loops: where it is kept, and what runs where it can't be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from supernet.graphs import code_cache, jit, sampler

_SOURCES = Path(jit.__file__).parent


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder for this test alone: machine code of a copied module is of no use to others."""
    monkeypatch.setenv("SUPERNET_CACHE_DIR", str(tmp_path))
    code_cache.code_folder.cache_clear()
    yield tmp_path
    code_cache.code_folder.cache_clear()


def _loaded_again() -> ModuleType:
    """Another copy of the loops, as a process that begins now would import them."""
    from supernet.graphs import sampler_kernels

    assert sampler_kernels.__file__ is not None
    spec = spec_from_file_location("kernels_again", sampler_kernels.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_folder_to_write_loops_are_compiled_at_every_start(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caching = pytest.importorskip("numba.core.caching", reason="needs numba (the extra `fast`)")
    expected = sampler._hashed(np.array([7], np.uint64))[0]

    def read_only(_: object) -> None:
        raise PermissionError("a read-only root")

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", read_only)
    assert (
        code_cache.code_folder("compiled-nodes", _SOURCES) is not None
    )  # it was there to write, and is no more
    assert _loaded_again().hashed(np.uint64(7)) == expected
    (own_cache / "file").touch()
    monkeypatch.setenv("SUPERNET_CACHE_DIR", str(own_cache / "file"))
    code_cache.code_folder.cache_clear()
    assert code_cache.code_folder("compiled-nodes", _SOURCES) is None
    assert callable(_loaded_again().hashed)


def test_machine_code_is_kept_by_a_digest_of_all_sources_and_not_among_them(
    own_cache: Path, tmp_path: Path
) -> None:
    numba = pytest.importorskip("numba", reason="needs numba (the extra `fast`)")
    before = numba.config.CACHE_DIR
    kept = Path(_loaded_again().next_hop.stats.cache_path).parent
    assert kept == own_cache / "compiled-nodes" / code_cache.fingerprint(_SOURCES)
    assert kept.stat().st_mode & 0o077 == 0
    assert before == numba.config.CACHE_DIR
    for name in ("kernels.py", "jit.py"):
        (tmp_path / name).write_text("a = 1\n")
    first = code_cache.fingerprint(tmp_path)
    (tmp_path / "kernels.py").write_text("a = 2\n")
    assert code_cache.fingerprint(tmp_path) != first
    (tmp_path / "kernels.py").write_text("a = 1\n")
    assert code_cache.fingerprint(tmp_path) == first


def test_the_plain_sampler_runs_where_numba_is_broken(tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(
        "raise OSError('libllvmlite.so is not there')\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from supernet.graphs.find_sampler import find_sampler\n"
        "print(find_sampler().name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "plain\n"), done.stderr
    assert "numba does not import here: libllvmlite.so is not there; nodes are" in done.stderr
