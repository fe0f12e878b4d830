"""`Models`: the served models by name; what every door looks things up in and every host runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from serve.config import LiveConfig, ServeConfigError
from serve.engine.served_engine import ServedEngine
from serve.models.limits import RefusedError
from serve.models.served_model import ServedModel
from serve.observe.demand import Signals, total


class Models:
    """One or more served models, in a fixed order; their engines share a clock."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._by_name = {model.spec.name: model for model in models}
        assert self._by_name, "a server without a model"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    def engines(self) -> Iterator[tuple[str, ServedEngine]]:
        """Return each model's name and engine."""
        return ((name, model.engine) for name, model in self._by_name.items())

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return list(self._by_name)

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that arrivals are stamped with."""
        return next(iter(self)).engine.clock

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model; a `version` must be one of its subnets. Raises RefusedError."""
        model = self._by_name.get(name)
        if model is None:
            known = ", ".join(self._by_name)
            raise RefusedError("unknown_model", f"model {name!r} is not served; served: {known}")
        if version is not None and version not in model.spec.subnet_ids:
            known = ", ".join(model.spec.subnet_ids)
            raise RefusedError("unknown_model", f"{name!r} has no version {version!r}; has {known}")
        return model

    def check_ready(self) -> None:
        """Raise RefusedError unless every model takes queries."""
        for model in self:
            model.check_ready()

    def takes_queries(self) -> bool:
        """Whether every model is ready, or about to be: neither drains nor has failed."""
        return all(model.engine.status().state in ("starting", "ready") for model in self)

    def index(self, *, is_ready: bool = False) -> list[dict[str, str]]:
        """Return name, state and reason of each model, or (`is_ready`) of those that are ready."""
        rows: list[dict[str, str]] = []
        for model in self:
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

        `from_start`: what is not given is as it was at the start, else as it is.
        Returns the settings in force by model. Raises ServeConfigError; each model changes all of
        what is asked of it or nothing.
        """
        own = change.models or {}
        unknown = sorted(own.keys() - self._by_name.keys())
        if unknown:
            known = ", ".join(self._by_name)
            raise ServeConfigError(f"model {', '.join(unknown)} is not served; served: {known}")
        common = change.model_dump(exclude={"models"}, exclude_none=True)
        for name, model in self._by_name.items():
            more = (
                own[name].model_dump(exclude={"models"}, exclude_none=True) if name in own else {}
            )
            if common or more or from_start:
                model.reconfigure(LiveConfig(**{**common, **more}), from_start=from_start)
        return {name: model.live_settings() for name, model in self._by_name.items()}

    def signals(self) -> Signals:
        """Return what the last seconds asked of the device, all models together."""
        return total(model.signals() for model in self)

    def fault(self) -> str:
        """Say why a device no longer answers; empty while all do."""
        return "; ".join(fault for model in self if (fault := model.engine.status().fault))

    async def start(self) -> None:
        """Warm every model up. Raises what a warm-up raises."""
        for model in self:
            await model.engine.start()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new queries and finish the queued ones; return whether all ended in time."""
        return all(await asyncio.gather(*(model.engine.drain(timeout_s) for model in self)))

    async def stop(self) -> None:
        """End the device threads."""
        for model in self:
            await model.engine.stop()
