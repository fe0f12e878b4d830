"""`Models`: the served models by name; what every door looks things up in and every host runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from serve.config import LiveConfig, ServeConfigError
from serve.engine.served_engine import ServedEngine
from serve.models.limits import RefusedError
from serve.models.served_decoder import ServedDecoder
from serve.models.served_model import ServedModel
from serve.observe.demand import Signals, total
from slackfit.policies.streams import stream_policy_names

_BY_STREAM = "is a decoder, which answers in streams: ask it at /v1/completions"


class Models:
    """One or more served models, in a fixed order; their engines share a clock.

    Iterating gives those that answer a query at once; `decoders` are those that write streams.
    """

    def __init__(
        self, models: Iterable[ServedModel] = (), decoders: Iterable[ServedDecoder] = ()
    ) -> None:
        self._by_name = {model.spec.name: model for model in models}
        self._decoders = {decoder.spec.name: decoder for decoder in decoders}
        assert self._by_name or self._decoders, "a server without a model"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    @property
    def decoders(self) -> tuple[ServedDecoder, ...]:
        """The models that write streams."""
        return tuple(self._decoders.values())

    def engines(self) -> Iterator[tuple[str, ServedEngine]]:
        """Return name and engine of each model that answers at once."""
        return ((name, model.engine) for name, model in self._by_name.items())

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return [*self._by_name, *self._decoders]

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that arrivals are stamped with."""
        return next(iter(self._each())).engine.clock

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model that answers at once; a `version` must be one of its subnets.

        Raises RefusedError.
        """
        model = self._by_name.get(name)
        if model is None:
            if name in self._decoders:
                raise RefusedError("unknown_model", f"model {name!r} {_BY_STREAM}")
            raise self._unknown(name)
        if version is not None and version not in model.spec.subnet_ids:
            known = ", ".join(model.spec.subnet_ids)
            raise RefusedError("unknown_model", f"{name!r} has no version {version!r}; has {known}")
        return model

    def find_decoder(self, name: str) -> ServedDecoder:
        """Return a model that writes streams. Raises RefusedError."""
        decoder = self._decoders.get(name)
        if decoder is not None:
            return decoder
        if name in self._by_name:
            text = f"model {name!r} writes no text; ask it at /v2/models/{name}/infer"
            raise RefusedError("unknown_model", text)
        raise self._unknown(name)

    def check_model_ready(self, name: str) -> None:
        """Raise RefusedError unless a model of that name is served and takes queries."""
        model = self._by_name.get(name) or self._decoders.get(name)
        if model is None:
            raise self._unknown(name)
        model.check_ready()

    def check_ready(self) -> None:
        """Raise RefusedError unless every model takes queries."""
        for model in self._each():
            model.check_ready()

    def takes_queries(self) -> bool:
        """Whether every model is ready, or about to be: neither drains nor has failed."""
        return all(model.engine.status().state in ("starting", "ready") for model in self._each())

    def index(self, *, is_ready: bool = False) -> list[dict[str, str]]:
        """Return name, state and reason of each model, or (`is_ready`) of those that are ready."""
        rows: list[dict[str, str]] = []
        for model in self._each():
            try:
                model.check_ready()
                rows.append(
                    {"name": model.spec.name, "version": "", "state": "READY", "reason": ""}
                )
            except RefusedError as error:
                state = {"version": "", "state": "UNAVAILABLE", "reason": error.reason}
                rows.append({"name": model.spec.name, **state})
        return [row for row in rows if not is_ready or row["state"] == "READY"]

    def reconfigure(self, change: LiveConfig, *, from_start: bool = False) -> dict[str, Any]:
        """Switch live settings, of every model and then of those that `change.models` names.

        `from_start`: what is not given is as it was at the start, else as it is. Where models of
        both kinds are served, a policy that is none of streams leaves decoders as they are.
        Returns the settings in force by model. Raises ServeConfigError; each model changes all of
        what is asked of it or nothing.
        """
        own = change.models or {}
        unknown = sorted(own.keys() - set(self.names))
        if unknown:
            known = ", ".join(self.names)
            raise ServeConfigError(f"model {', '.join(unknown)} is not served; served: {known}")
        common = change.model_dump(exclude={"models"}, exclude_none=True)
        for model in self._each():
            name = model.spec.name
            shared = dict(common)
            if name in self._decoders and self._by_name and not _is_of_streams(change.policy):
                shared.pop("policy", None)
            more = (
                own[name].model_dump(exclude={"models"}, exclude_none=True) if name in own else {}
            )
            if shared or more or from_start:
                model.reconfigure(LiveConfig(**{**shared, **more}), from_start=from_start)
        return {model.spec.name: model.live_settings() for model in self._each()}

    def reconfigure_one(self, name: str, change: LiveConfig) -> dict[str, Any]:
        """Switch live settings of one model. Raises ServeConfigError, RefusedError for no model."""
        model = self._by_name.get(name) or self._decoders.get(name)
        if model is None:
            raise self._unknown(name)
        return model.reconfigure(change)

    def live_settings(self) -> dict[str, Any]:
        """Return the settings in force by model."""
        return {model.spec.name: model.live_settings() for model in self._each()}

    def signals(self) -> Signals:
        """Return what the last seconds asked of the device, all models together."""
        return total(model.signals() for model in self)

    def fault(self) -> str:
        """Say why a device no longer answers; empty while all do."""
        faults = (model.engine.status().fault for model in self._each())
        return "; ".join(fault for fault in faults if fault)

    async def start(self) -> None:
        """Warm every model up. Raises what a warm-up raises."""
        for model in self._each():
            await model.engine.start()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new queries and finish the queued ones; return whether all ended in time."""
        ended = await asyncio.gather(*(m.engine.drain(timeout_s) for m in self._each()))
        return all(ended)

    async def stop(self) -> None:
        """End the device threads."""
        for model in self._each():
            await model.engine.stop()

    def _each(self) -> Iterator[ServedModel | ServedDecoder]:
        return chain(self._by_name.values(), self._decoders.values())

    def _unknown(self, name: str) -> RefusedError:
        known = ", ".join(self.names)
        return RefusedError("unknown_model", f"model {name!r:.80} is not served; served: {known}")


def _is_of_streams(policy: str | None) -> bool:
    name = (policy or "").partition("@")[0]
    return name.startswith("fixed:") or name in stream_policy_names()
