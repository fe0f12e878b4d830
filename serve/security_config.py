"""`SecurityConfig`: the settings below `security`, what a server hides of its choice of models.

Only the operator sets them; no parameter, header or token of a client changes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.config_keys import check_keys

OutputForm = Literal["full", "rounded", "top1"]
Mechanism = Literal["permute_and_flip", "laplace"]
TIER_NAMES = ("bronze", "silver", "gold")
_TierName = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
_Floor = Annotated[float, Field(ge=0, le=1)]
_Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SecurityConfig(BaseModel):
    """The defence of one server; docs/audit.md says what it protects, what it costs, what not.

    `tiers`: floors on accuracy by name, or how many to lay out (1 to 3, named bronze, silver,
    gold); a request's `min_accuracy` counts as the next floor above it. `grid_ms`: deadlines count
    as the multiple of it below, answers leave at one. `mechanism`, `epsilon`, `spread`: the subnet
    is drawn among the `spread` most accurate that fit, the epsilon stated for a range of utility
    of 1. The draw is keyed by principal, specification, input and window of `window_s` seconds,
    with the secret in `key_file` (null: one that lasts as long as the process; replicas need the
    same). `budget_epsilon`: what the different draws of one principal in a window may add up to
    (basic composition); beyond it is refused. `outputs`: by tier, whether logits are given in
    `full`, as probabilities `rounded` to `decimals`, or as `top1` only.
    `audit_log`: a file to which what was served to whom is appended. Alerts: more than
    `max_specifications` different specifications, or `max_repeats` of one input (or of inputs that
    look the same), by one principal within `alert_window_s`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tiers: Annotated[int, Field(ge=1, le=3)] | dict[_TierName, _Floor] = 3
    grid_ms: _Above0 = 50.0
    mechanism: Mechanism = "permute_and_flip"
    epsilon: _Above0 = 1.0
    spread: Annotated[int, Field(ge=2)] = 6
    window_s: _Above0 = 86_400.0
    key_file: str | None = None
    budget_epsilon: _Above0 | None = None
    outputs: dict[_TierName, OutputForm] = {}
    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    audit_log: str | None = None
    alert_window_s: _Above0 = 60.0
    max_specifications: Annotated[int, Field(ge=1)] = 20
    max_repeats: Annotated[int, Field(ge=1)] = 50

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_keys(data, cls.model_fields, "setting of security")
        return data

    @model_validator(mode="after")
    def _check_tiers(self) -> SecurityConfig:
        if isinstance(self.tiers, dict) and not self.tiers:
            raise ValueError("tiers is empty: name one or more, or give a number")
        unknown = sorted(set(self.outputs) - set(self.tier_names))
        if unknown:
            known = ", ".join(self.tier_names)
            raise ValueError(f"outputs names tier {', '.join(unknown)}, the tiers are {known}")
        if self.budget_epsilon is not None and self.budget_epsilon < self.epsilon:
            text = f"budget_epsilon is {self.budget_epsilon:g}, allowed epsilon"
            raise ValueError(f"{text} ({self.epsilon:g}) or more: what one draw costs")
        return self

    @property
    def tier_names(self) -> tuple[str, ...]:
        """The names of the tiers, those laid out by number from the lowest floor upwards."""
        if isinstance(self.tiers, int):
            return TIER_NAMES[: self.tiers]
        return tuple(self.tiers)
