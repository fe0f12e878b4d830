"""What a replay of streams saw, in Parquet: a row for every chunk, for programs that ask more.

Times are seconds from the start of the run. A stream of which no chunk came has one row without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slackfit.output_files import replacing
from traces.open_loop.stream_replay import SeenStream
from traces.trace import TraceError

COLUMNS = (
    "query_id",
    "intended_s",
    "sent_s",
    "prompt_tokens",
    "chunk_s",
    "tokens",
    "end_s",
    "status",
    "reason",
    "server_fluidity",
)


def write_chunks(path: Path | str, seen: Sequence[SeenStream]) -> None:
    """Write every chunk; the file appears whole or not at all. Raises TraceError: it can't be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (
            stream.query.query_id,
            stream.query.arrival_s,
            stream.sent_s,
            stream.query.prompt_tokens,
            at_s,
            tokens,
            stream.end_s,
            stream.end.status,
            stream.end.reason,
            stream.end.fluidity,
        )
        for stream in seen
        for at_s, tokens in (stream.chunks or [(None, 0)])
    ]
    columns = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
    table = pa.table(dict(zip(COLUMNS, map(list, columns), strict=True)))
    try:
        with replacing(Path(path)) as temporary:
            pq.write_table(table, temporary)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error})") from None
