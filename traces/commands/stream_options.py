"""The options of `simulate` that are of streams."""

from __future__ import annotations

from typing import Annotated

import typer

TtftOption = Annotated[
    float | None, typer.Option(min=0, help="Streams: first outputs are due so long after arrival.")
]
TpotOption = Annotated[
    float | None, typer.Option(min=0, help="Streams: each later output is due so long after.")
]
TtftPerTokenOption = Annotated[
    float, typer.Option(min=0, help="Streams: so much later per prompt token.")
]
ThinOption = Annotated[
    float, typer.Option(metavar="FRACTION", help="Streams: keep each with this probability.")
]
LengthScaleOption = Annotated[
    float, typer.Option(metavar="FACTOR", help="Streams: token counts times this, 1 at the least.")
]
LengthsOption = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Streams: draw token counts from this trace's rows."),
]
KvTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Streams: tokens that the device has memory for.")
]
MaxRunningOption = Annotated[
    int | None, typer.Option(min=1, help="Streams: how many may run at once.")
]

STREAM_OPTIONS = (
    *("ttft_ms", "tpot_ms", "ttft_per_token_ms", "thin", "length_scale", "lengths"),
    *("kv_tokens", "max_running"),
)
"""Parameters that are of streams only."""

BATCH_OPTIONS = (
    *("slo_ms", "overhead_ms", "subnets", "drop_hopeless", "events", "devices", "noise"),
    *("residency", "cache_mib", "bound", "stream", "chrome_out", "replicas", "routing"),
)
"""Parameters that are of batches only."""
