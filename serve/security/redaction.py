"""What those outside may learn of an answer, a refusal, a count: pure, from ours to theirs.

What is told has the same names and the same length whichever subnet served: times are 0, texts
empty. Only the outputs, the status, and the grid point at which the answer leaves are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from serve.engine.reply import Reply
from serve.models.limits import RefusedError
from serve.observe.request_record import RequestRecord
from serve.security.public_counts import RELEASED
from serve.security_config import OutputForm
from slackfit.query import Outcome

PUBLIC_METRICS = (RELEASED, "supernet_ready", "supernet_refused_requests")
"""Families that say nothing of single queries' subnets: not by label, nor by a sum of times, nor by
when they rise: with an answer or a refusal that leaves."""

_TEXTS = {
    "infeasible": "no answer can be given before the deadline",
    "unknown_subnet": "the server chooses",
}


def veiled_reply(reply: Reply, output: np.ndarray, *, tells_outlook: bool) -> Reply:
    """Return a reply with another output, and without its subnet, accuracy, times and sizes."""
    outcome = reply.outcome
    told = Outcome(
        query_id=0,
        status=outcome.status,
        reason=outcome.reason,
        arrival_s=0.0,
        deadline_s=0.0,
        start_s=0.0,
        finish_s=0.0,
        subnet_id="",
        accuracy=0.0,
        batch_size=0,
        samples=outcome.samples,
    )
    outlook = reply.outlook if tells_outlook else None
    return Reply(told, output, tenant=reply.tenant, outlook=outlook)


def veiled_refusal(error: RefusedError, *, tells_outlook: bool) -> RefusedError:
    """Return a refusal without a predicted time, but for whole seconds to wait."""
    retry_after_s = float(math.ceil(error.retry_after_s))
    return RefusedError(
        error.reason,
        _TEXTS.get(error.reason, error.message),
        status=error.status,
        retry_after_s=error.retry_after_s if tells_outlook else retry_after_s,
        earliest_finish_s=error.earliest_finish_s if tells_outlook else None,
    )


def veiled_record(record: RequestRecord) -> RequestRecord:
    """Return what logs and spans are told: principals may read theirs, in a common trace say.

    A request lasts until it is told of, which is when its answer leaves. It has one end, however
    many subnets were drawn for it, and no id, which would count those.
    """
    decisive = record.decisive
    if decisive is None:
        return record._replace(submitted_s=record.arrival_s)
    told = Outcome(
        query_id=0,
        status=decisive.status,
        reason=decisive.reason,
        arrival_s=decisive.arrival_s,
        deadline_s=decisive.deadline_s,
        start_s=None,
        finish_s=record.ended_s,
        subnet_id=None,
        accuracy=0.0,
        batch_size=0,
    )
    replies = [Reply(told, tenant=record.tenant)]
    return record._replace(replies=replies, submitted_s=record.arrival_s)


def reduced(logits: np.ndarray, form: OutputForm, decimals: int) -> np.ndarray:
    """Return logits (B, classes) in the form that a tier gets, the same shape.

    `rounded`: probabilities, so rounded; `top1`: 1 at the class of the highest logit, else 0.
    """
    if form == "full":
        return logits
    if form == "top1":
        one_hot = np.zeros_like(logits)
        one_hot[np.arange(len(logits)), logits.argmax(axis=1)] = 1.0
        return one_hot
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.round(shifted / shifted.sum(axis=1, keepdims=True), decimals)


def release_s(
    arrival_s: float,
    now_s: float,
    deadline_s: float,
    given_deadline_s: float,
    grid_s: float,
    least_steps: int,
) -> float:
    """Return when an answer that is ready at `now_s` leaves: the next point of the grid.

    Not before `least_steps` of it, by when any candidate would have been ready. Never later than
    what the scheduler worked for (`deadline_s`); between that and the deadline itself at once; what
    is late anyway at the next point.
    """
    on_grid_s = arrival_s + max(least_steps, _steps_up(now_s - arrival_s, grid_s)) * grid_s
    if now_s > given_deadline_s:
        return on_grid_s
    return max(now_s, min(on_grid_s, deadline_s))


def _steps_up(duration_s: float, grid_s: float) -> int:
    return max(1, math.ceil(duration_s / grid_s - 1e-9))


def merged(parts: Sequence[tuple[Sequence[int], Sequence[Reply]]], count: int) -> list[Reply]:
    """Return one reply per sample, in the request's order, of groups that were served apart."""
    if count == 1:
        return list(parts[0][1])
    whole: dict[int, Reply] = {}
    for indices, replies in parts:
        at = iter(indices)
        for reply in replies:
            assert reply.output is not None, "refusals were raised"
            own = reply.outcome._replace(samples=1)
            for row in reply.output:
                whole[next(at)] = reply._replace(outcome=own, output=row[np.newaxis])
    return [whole[place] for place in range(count)]
