"""What chunking does to readers and to the prompt itself, and what a shared prefix saves."""

from __future__ import annotations

from itertools import pairwise

from serve.bench.rows import Row, row
from serve.bench.streams.setting import OURS, StreamRunner
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_query import StreamOutcome, StreamQuery

PROMPT = 2000
BLOCK_TOKENS = 64
_DECODES = 8
_READ_BEFORE = 20  # outputs of each reader, about, when the prompt comes
_WHOLE = 1_000_000


def chunking_rows(run: StreamRunner, costs: IterationCosts, how: str) -> list[Row]:
    """Return the figures of one long prompt, alone and beside decodes; `how` says what ran.

    And of a prompt three quarters of which are computed already.
    """
    decodes = IterationWork(_DECODES, _DECODES, _DECODES, _DECODES * 80)
    at_s = _READ_BEFORE * costs.seconds(costs.subnet_ids[-1], decodes)
    whole_s, beside_s = _whole_s(run), _whole_beside_s(run, at_s)
    rows = [
        _gap_row(run, at_s, "sarathi@budget=40", "", how),
        _gap_row(run, at_s, OURS, "/ours", how),
    ]
    for budget in (32, 128):
        alone_s = _first_s(run([_long(0, 0.0)], f"sarathi@budget={budget}")[0])
        rows.append(
            row(
                f"streams/ttft_chunked_over_alone/b{budget}",
                alone_s / whole_s[0],
                "ratio",
                f"{PROMPT} tokens, {alone_s:.3f} s; alone {whole_s[0]:.3f} s in chunks of "
                f"{whole_s[1]}; no decodes; bar {1.4 if budget == 32 else 1.2}; {how}",
            )
        )
        policy = f"sarathi@budget={budget + _DECODES}"
        chunked_s = _first_s(run([*_readers(), _long(_DECODES, at_s)], policy)[-1])
        rows.append(
            row(
                f"streams/ttft_chunked_over_alone/beside8/b{budget}",
                chunked_s / whole_s[0],
                "ratio",
                f"{chunked_s:.3f} s beside {_DECODES} decodes, whole beside them {beside_s:.3f} "
                f"s; bar {2.0 if budget == 32 else 1.2}; {how}",
            )
        )
    return [*rows, _prefix_row(run, whole_s, how)]


def _gap_row(run: StreamRunner, at_s: float, policy: str, suffix: str, how: str) -> Row:
    unchunked_s = _largest_gap_s(run, at_s, f"sarathi@budget={_WHOLE}")
    chunked_s = _largest_gap_s(run, at_s, policy)
    return row(
        f"streams/gap_unchunked_over_chunked{suffix}",
        unchunked_s / chunked_s,
        "ratio",
        f"largest gap of {_DECODES} readers, {unchunked_s:.3f} s whole against {chunked_s:.3f} s "
        f"with {policy}; bar 10; {how}",
    )


def _prefix_row(run: StreamRunner, whole_s: tuple[float, int], how: str) -> Row:
    policy = f"sarathi@budget={whole_s[1]}"
    shared = PROMPT * 3 // 4 // BLOCK_TOKENS * BLOCK_TOKENS  # whole blocks of a decoder's cache
    hit = _long(0, 0.0)._replace(cached_tokens=shared)
    hit_s = _first_s(run([hit], policy)[0])
    return row(
        "streams/prefix_hit_over_cold/shared75",
        hit_s / whole_s[0],
        "ratio",
        f"{shared} of {PROMPT} tokens: first token {hit_s:.3f} s against {whole_s[0]:.3f} s, "
        f"{policy}; bar 0.35; {how}",
    )


def _whole_s(run: StreamRunner) -> tuple[float, int]:
    """Return the shortest time to a first output alone, and the chunk that gives it."""
    chunks = (128, 256, 512, _WHOLE)
    return min((_first_s(run([_long(0, 0.0)], f"sarathi@budget={n}")[0]), n) for n in chunks)


def _whole_beside_s(run: StreamRunner, at_s: float) -> float:
    outcomes = run([*_readers(), _long(_DECODES, at_s)], f"sarathi@budget={_WHOLE}")
    return _first_s(outcomes[-1])


def _largest_gap_s(run: StreamRunner, at_s: float, policy: str) -> float:
    outcomes = run([*_readers(), _long(_DECODES, at_s)], policy)
    return max(
        later - earlier
        for outcome in outcomes[:_DECODES]
        for earlier, later in pairwise(outcome.output_s)
        if later > at_s
    )


def _readers() -> list[StreamQuery]:
    """Eight streams that read on for longer than the prompt takes."""
    return [StreamQuery(i, 0.0, 64, 160, 30.0, 0.25) for i in range(_DECODES)]


def _long(query_id: int, arrival_s: float) -> StreamQuery:
    return StreamQuery(query_id, arrival_s, PROMPT, 1, arrival_s + 60.0, 0.25)


def _first_s(outcome: StreamOutcome) -> float:
    return outcome.output_s[0] - outcome.query.arrival_s
