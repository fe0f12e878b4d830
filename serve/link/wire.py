"""What crosses a link between processes of one server, as the plain values it crosses as. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from serve.config import LiveConfig
from serve.doors.server import Server
from serve.doors.shared_memory import Region
from serve.engine.reply import Reply
from serve.models.limits import RefusedError
from serve.models.request import ModelSpec
from serve.models.served_model import ServedModel
from slackfit.query import Outcome
from slackfit.spreading import Outlook
from supernet.sample import SampleSpec


def pack_reply(reply: Reply) -> tuple[Any, ...]:
    """Return a reply as plain values; whose tenant it is, the door knows."""
    output = reply.output
    return (
        reply.outcome,
        None if output is None else np.ascontiguousarray(output, dtype="<f4").tobytes(),
        None if output is None else output.shape,
        reply.execution_s,
        reply.batch_id,
        reply.form,
        reply.outlook,
    )


def unpack_reply(packed: Sequence[Any], tenant: str) -> Reply:
    """Return the reply of a tenant's query."""
    outcome, data, shape, execution_s, batch_id, form, outlook = packed
    output = None if data is None else np.frombuffer(data, "<f4").reshape(shape)
    told = None if outlook is None else Outlook._make(outlook)
    return Reply(Outcome._make(outcome), output, execution_s, batch_id, form, tenant, told)


def pack_refusal(error: RefusedError) -> tuple[Any, ...]:
    """Return a refusal as plain values."""
    told = (error.reason, error.message, error.status)
    return (*told, error.retry_after_s, error.earliest_finish_s)


def unpack_refusal(packed: Sequence[Any]) -> RefusedError:
    """Return the refusal."""
    reason, message, status, retry_after_s, earliest_finish_s = packed
    return RefusedError(
        reason,
        message,
        status=status,
        retry_after_s=retry_after_s,
        earliest_finish_s=earliest_finish_s,
    )


def pack_model(model: ServedModel) -> dict[str, Any]:
    """Return what a door must know of a model once: what it takes, every subnet, its start."""
    return {
        "spec": {**model.spec._asdict(), "sample": asdict(model.spec.sample)},
        "profile": model.profile.to_json(),
        "live": pack_live(model),
        "allowance_s": model.reply_allowance_s,
    }


def unpack_spec(fields: dict[str, Any]) -> ModelSpec:
    """Return a model's spec."""
    sample = {**fields["sample"], "shape": tuple(fields["sample"]["shape"])}
    own = {"sample": SampleSpec(**sample), "subnet_ids": tuple(fields["subnet_ids"])}
    return ModelSpec(**{**fields, **own})


def pack_live(model: ServedModel) -> dict[str, Any]:
    """Return the whole of a model's live settings."""
    return model.live_config().model_dump(mode="json", exclude_none=True)


def unpack_live(fields: dict[str, Any]) -> LiveConfig:
    """Return the live settings."""
    return LiveConfig.model_validate(fields)


def pack_state(server: Server) -> dict[str, Any]:
    """Return what doors must know of a server at any time: its models' state, shared memory."""
    models: list[dict[str, Any]] = []
    for model in server.models:
        status = model.engine.status()
        models.append(
            {
                "state": status.state,
                "policy": status.policy,
                "fallback": status.fallback,
                "fault": status.fault,
                "settings": model.engine.scheduler_settings(),
                "live": pack_live(model),
            }
        )
    return {"models": models, "regions": server.memory.table()}


def unpack_regions(rows: Sequence[Any]) -> list[tuple[str, Region]]:
    """Return regions of shared memory with their owners."""
    return [(owner, Region._make(region)) for owner, region in rows]
