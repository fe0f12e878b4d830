"""Downloads of the public traces: resumed where they broke off, checked, unpacked.

A download grows in `NAME.part` beside its place and goes on from there when it is asked for again,
provided that the server still has the same file (its ETag). The file appears under its name only
when it is whole and its SHA-256 is the known one; where none is known, the sum is noted in
`NAME.sha256`, and a file that is already there is held against it.
"""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from traces.trace import TraceError

_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset"
_AZURE_2023 = f"{_AZURE}/b469a113cedca53ddc3bdea71a143dc4b7d8700c/data"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], None]
"""Hears (bytes so far, bytes in all or None)."""


class Original(NamedTuple):
    """One public file. `spec` reads it once it is there; {path} stands for where."""

    url: str
    spec: str
    licence: str
    sha256: str | None = None
    unpacked: str | None = None  # the folder that the archive is unpacked to
    note: str = ""

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


ORIGINALS = {
    "azure2019": Original(
        url="https://azurecloudpublicdataset2.blob.core.windows.net/azurepublicdatasetv2/"
        "azurefunctions_dataset2019/azurefunctions-dataset2019.tar.xz",
        spec="azure2019:path={path},qps=6400,duration=120",
        licence="CC-BY 4.0 (Microsoft)",
        unpacked="azurefunctions-dataset2019",
    ),
    "azure2021": Original(
        url=f"{_AZURE}/master/data/AzureFunctionsInvocationTraceForTwoWeeksJan2021.rar",
        spec="azure2021:path=AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt",
        licence="CC-BY 4.0 (Microsoft)",
        note="a RAR archive: unpack it with unrar or 7z",
    ),
    "azure-llm-2023-conv": Original(
        url=f"{_AZURE_2023}/AzureLLMInferenceTrace_conv.csv",
        spec="azure-llm:path={path}",
        licence="CC-BY 4.0 (Microsoft)",
        sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    "azure-llm-2023-code": Original(
        url=f"{_AZURE_2023}/AzureLLMInferenceTrace_code.csv",
        spec="azure-llm:path={path}",
        licence="CC-BY 4.0 (Microsoft)",
        sha256="54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    ),
    "azure-llm-2024-code": Original(
        url="https://azurepublicdatasettraces.blob.core.windows.net/azurellminfererencetrace/"
        "AzureLLMInferenceTrace_code_1week.csv",
        spec="azure-llm:path={path}",
        licence="CC-BY 4.0 (Microsoft)",
    ),
    "mooncake": Original(
        url="https://raw.githubusercontent.com/kvcache-ai/Mooncake/"
        "3b5a594133958449a1feaf1c9e0fc1b553e34a28/FAST25-release/traces/conversation_trace.jsonl",
        spec="mooncake:path={path}",
        licence="Apache-2.0",
    ),
}


def original(name: str) -> Original:
    """Return the public file of this name. Raises TraceError that lists the names."""
    if name not in ORIGINALS:
        raise TraceError(f"no public trace is called {name!r}; known: {', '.join(ORIGINALS)}")
    return ORIGINALS[name]


def fetch(
    what: Original, folder: Path, *, url: str | None = None, progress: Progress | None = None
) -> tuple[Path, str]:
    """Download a file into `folder` unless it is there; return where it is and its SHA-256.

    `url` is another place to get it from. An archive that Python can unpack is unpacked, and the
    path is that of its folder.

    Raises:
        TraceError: the server can't be reached (then with what to do by hand), the download broke
            off (what came is kept), or the file is not the one that was published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / what.file_name
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        try:
            _download(url or what.url, part, progress or (lambda _done, _total: None))
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise TraceError(_by_hand(what, url or what.url, path, part, error)) from None
        try:
            _check(what, part, path)
        except TraceError:
            part.unlink()  # going on from there would not mend it
            raise
        part.replace(path)
    digest = _check(what, path, path)
    if what.unpacked is None:
        return path, digest
    return _unpack(path, folder / what.unpacked), digest


def _download(url: str, part: Path, progress: Progress) -> None:
    done = part.stat().st_size if part.exists() else 0
    tag = part.with_name(f"{part.name}.etag")
    request = urllib.request.Request(url)
    if done and tag.exists():
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        if answer.status != 206:
            done = 0  # another file by now, or a server that only sends whole ones
        etag = answer.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            tag.write_text(etag, encoding="utf-8")
        length = answer.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with part.open("ab" if done else "wb") as out:
            progress(done, total)
            while chunk := answer.read(_CHUNK_BYTES):
                out.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total is not None and done != total:
        raise ConnectionError(f"the download broke off after {done:,} of {total:,} bytes")
    tag.unlink(missing_ok=True)


def _check(what: Original, path: Path, place: Path) -> str:
    """Return the file's SHA-256. Raises TraceError when it is another than the known one."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    noted = place.with_name(f"{place.name}.sha256")
    known = what.sha256
    if known is None and noted.exists():
        known = noted.read_text(encoding="utf-8").split()[0]
    if known is not None and digest != known:
        raise TraceError(
            f"{place}: SHA-256 is {digest}, expected {known}: this is not the published file; "
            "move it away, if it is there, and fetch it again"
        )
    if what.sha256 is None:
        noted.write_text(f"{digest}  {place.name}\n", encoding="utf-8")
    return digest


def _unpack(archive: Path, folder: Path) -> Path:
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.tmp")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise TraceError(f"{archive}: can't be unpacked ({error})") from None
    partial.rename(folder)
    return folder


def _by_hand(what: Original, url: str, path: Path, part: Path, error: Exception) -> str:
    kept = ""
    if part.exists() and part.stat().st_size:
        kept = f" {part.stat().st_size:,} bytes are kept; the same command goes on from there."
    return (
        f"{url}: can't be fetched ({error}).{kept} Where the network is closed, get the file "
        f"elsewhere, put it at {path} and give the same command again"
    )
