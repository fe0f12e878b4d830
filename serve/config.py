"""`ServeConfig`: every setting of a server, typed, validated, the same with Ray and without.

Unknown keys are refused with a list of the known ones, so that a typo can't be ignored. Keys with
`_ms` hold milliseconds; everything else is SI.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve.config_keys import check_keys
from serve.security_config import SecurityConfig

LOOPBACK = "127.0.0.1"
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
Packing = Literal["graph", "views", "folded", "shared", "one_copy", "packed", "half", "int8"]


class ServeConfigError(ValueError):
    """A setting is unknown, malformed, or contradicts another."""


class ModelConfig(BaseModel):
    """What one of several models has of its own; what is not given (None) is as for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str | None = None
    profile: str | None = None
    policy: str | None = None
    slo_ms: Milliseconds | None = None
    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    subnets: tuple[str, ...] | None = None
    packing: Packing | None = None
    cache_mib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_batch_size: Annotated[int, Field(ge=1)] | None = None
    max_queue: Annotated[int, Field(ge=1)] | None = None
    kv_tokens: Annotated[int, Field(ge=1)] | None = None
    max_running: Annotated[int, Field(ge=1)] | None = None
    record: str | None = None
    input_shape: tuple[int, int, int] | None = None
    num_classes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_keys(data, cls.model_fields, "setting of a model")
        return data


class Autoscaling(BaseModel):
    """Replicas on Ray, between a minimum and a maximum, by `hosts/autoscale.py`.

    `max_missed`: tolerated share of queries that are not on time. `max_given_up`: tolerated mean
    loss of accuracy against the most accurate subnet. `utilisation`: how busy a device may be. A
    change has to last for `upscale_delay_s` or `downscale_delay_s`; figures are means over
    `look_back_s`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)]
    max_missed: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_given_up: Annotated[float, Field(ge=0, le=1)] = 0.02
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    look_back_s: Annotated[float, Field(gt=10)] = 12.0  # Ray asks for more than its interval, 10 s

    @model_validator(mode="after")
    def _check_order(self) -> Autoscaling:
        if self.max_replicas < self.min_replicas:
            text = f"max_replicas is {self.max_replicas}, allowed min_replicas"
            raise ValueError(f"{text} ({self.min_replicas}) or more")
        return self


class TenantConfig(BaseModel):
    """What one tenant of a shared server may ask for; see `models/tenant_limits.py`.

    `rate_limit_qps` samples per second in all, `rate_limit_burst` at once. `share`: the fraction of
    device time that it is owed under overload. `highest_priority`: 1 any, 2 any but 1, 0 none.
    `may_pin`: whether it may choose subnets. `longest_slo_ms`: how late a deadline it may name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_limit_qps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rate_limit_burst: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    highest_priority: Annotated[int, Field(ge=0)] = 1
    may_pin: bool = True
    longest_slo_ms: Milliseconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_keys(data, cls.model_fields, "setting of a tenant")
        return data

    @model_validator(mode="after")
    def _check_burst(self) -> TenantConfig:
        if self.rate_limit_burst is not None and self.rate_limit_qps is None:
            raise ValueError("rate_limit_burst without rate_limit_qps: give the rate, too")
        return self


class ServeConfig(BaseModel):
    """Settings of a server.

    `device="timed"` serves a labelled fake that sleeps for the profiled latency and computes
    nothing; it needs a profile, and takes the input's shape from `input_shape` and `num_classes`.
    `drop_hopeless`: queries that no subnet can answer in time are refused, or dropped once that is
    so, instead of costing device time (false: they are served late; null: as the policy says).
    `host` may be `unix:PATH`, without Ray: then HTTP listens at that socket instead of `port`, and
    gRPC, where asked for, at `PATH.grpc`.
    `doors` (without Ray): how many processes parse and answer requests. 1: the engine's own; more,
    up to the cores of the machine: processes beside it, on the same ports, which hand samples over
    in shared memory. Each has an equal part of `max_inflight_bytes` and `max_connections`.
    `replicas` (on Ray): how many, each with a device of its own. `replica_urls` (without Ray): the
    addresses of all servers that serve the same, this one among them, HTTP and gRPC: what clients
    spread over (`models/replica_set.py`); on Ray the replicas tell each other.
    `door_port` (on Ray): a port of `host` on which each replica listens itself, beside Ray's proxy.
    `grpc_port`: where to speak gRPC as well, without Ray or at each replica (null: nowhere).
    `max_body_bytes` bounds one request, `max_json_bytes` a tensor that is written as JSON numbers
    (each costs the server as much as a hundred bytes), `max_inflight_bytes` all requests together,
    at both doors, from their first byte to their answer; `max_connections` those open at once over
    HTTP (null: what the process may open as files leaves room for). After `max_connection_requests`
    (HTTP) or `max_connection_age_s` a connection is closed behind an answer, so that clients which
    keep one come to other replicas as well (null: it never is). `keep_alive_s`: how long one on
    which nothing is asked is kept; longer than what a balancer in front keeps its own for.
    `shared_memory`: whether clients on this host may name tensors in memory that they share.
    `max_image_pixels`: image files that claim more are refused before they are decoded.
    `hung_after_s`: a batch that runs longer (and 50 times longer than predicted) means that the
    device hangs: its queries fail, the server says that it is not live.
    `correct_latency`: the profile is scaled by what batches take while serving.
    `reply_allowance_ms`: how long before its deadline an answer should leave the device, for the
    way back to the client, beside what answers wait at the door (`models/reply_lag.py`); both
    together at most 15 % of the time given.
    `tokens_file` (see `access/tokens.py`): without tokens everybody who reaches the port may ask; a
    `host` that others reach is then refused unless `allow_anonymous` says that this is meant.
    `tls_cert` and `tls_key`: PEM files; with them every port speaks TLS only.
    `rate_limit_qps`: samples that one principal (a token's name, else an address) may send per
    second, `rate_limit_burst` of them at once (null: what a second allows, at least one).
    `trusted_proxies`: addresses or networks of proxies whose `X-Forwarded-For` says who asks.
    `tenants`: by name, what each may ask for (`TenantConfig`); `tenant_header` is the header where
    callers whose token is of no tenant may name theirs (null: none).
    `security`: hides which subnet serves, at a price (`SecurityConfig`; null: nothing is hidden).
    `autoscaling` (on Ray): how many replicas, and when there are more.
    `models`: several models by name, which take turns on the device; each has settings of its own
    (`ModelConfig`) before those in common.
    A decoder serves streams, by the policy `slackwidth` if none is named: a first output is due
    after `ttft_ms`, each later one `tpot_ms` after that before it, where a request does not say; at
    most `max_running` run at once, `max_queue` wait, and there is memory for `kv_tokens` of all of
    them together (null: for what 512 MiB hold);
    `prefix_cache`: whether beginnings of prompts that came before are computed once.
    `max_batch_size` is the largest batch measured when no profile is given; a profile says its own.
    `packing`: how the device keeps weights (null: as the profile was measured, else the fastest);
    `cache_mib` limits what a CPU packs, or all weights on a CUDA device (null: no limit).
    `dtype`: what a CUDA device computes in (null: as the profile was measured, else bfloat16);
    `graph_mib` limits what its graphs hold (null: no limit, 0: no graphs); they are of what was
    launched lately, and captured between batches (docs/actuation.md).
    `log_format`: lines for people (`text`) or for programs (`json`). `log_queries`: which queries
    get a line, `none`, `misses` (not on time) or `all`, at most `log_lines_per_s`.
    `spans`: write OpenTelemetry spans (`observe/spans.py` says how they are configured).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str | None = None
    profile: str | None = None
    policy: str = "drainfit"
    slo_ms: Milliseconds = 100.0
    ttft_ms: Milliseconds = 1000.0
    tpot_ms: Milliseconds = 200.0
    model_name: ModelName | None = None
    subnets: tuple[str, ...] | None = None
    drop_hopeless: bool | None = True
    correct_latency: bool = True
    reply_allowance_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    device: Literal["cpu", "cuda", "timed"] = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    packing: Packing | None = None
    cache_mib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    graph_mib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_batch_size: Annotated[int, Field(ge=1)] = 16
    max_queue: Annotated[int, Field(ge=1)] = 1000
    kv_tokens: Annotated[int, Field(ge=1)] | None = None
    max_running: Annotated[int, Field(ge=1)] = 64
    prefix_cache: bool = True
    max_body_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    max_json_bytes: Annotated[int, Field(ge=1)] = 256 * 2**10
    max_inflight_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    max_connections: Annotated[int, Field(ge=1)] | None = None
    max_connection_requests: Annotated[int, Field(ge=1)] | None = 10_000
    max_connection_age_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 300.0
    keep_alive_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    shared_memory: bool = True
    max_image_pixels: Annotated[int, Field(ge=1)] = 16 * 2**20
    host: str = LOOPBACK
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    doors: Annotated[int, Field(ge=1)] = 1
    replicas: Annotated[int, Field(ge=1)] = 1
    replica_urls: tuple[str, ...] = ()
    door_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    tokens_file: str | None = None
    allow_anonymous: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    rate_limit_qps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rate_limit_burst: Annotated[int, Field(ge=1)] | None = None
    trusted_proxies: tuple[str, ...] = ()
    tenants: dict[ModelName, TenantConfig] | None = None
    tenant_header: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] | None = None
    security: SecurityConfig | None = None
    hung_after_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    drain_timeout_s: Annotated[float, Field(ge=0)] = 10.0
    record: str | None = None
    autoscaling: Autoscaling | None = None
    log_format: Literal["text", "json"] = "text"
    log_queries: Literal["none", "misses", "all"] = "misses"
    log_lines_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    spans: bool = False
    input_shape: tuple[int, int, int] | None = None
    num_classes: Annotated[int, Field(ge=1)] | None = None
    models: dict[ModelName, ModelConfig] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_keys(data, cls.model_fields, "setting")
        return data

    @field_validator("subnets", "input_shape", "trusted_proxies", "replica_urls", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            ipaddress.ip_network(proxy)  # its ValueError says what is wrong
        return value

    @field_validator("replica_urls")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://", "grpc://", "grpcs://")):
                raise ValueError(f"{url!r} is no URL with http://, https://, grpc:// or grpcs://")
        return value

    @model_validator(mode="after")
    def _check_device(self) -> ServeConfig:
        if self.models is not None:
            return self._check_several()
        is_timed = self.device == "timed"
        if is_timed and self.profile is None:
            raise ValueError("device 'timed' sleeps for profiled latencies: give a profile")
        if not is_timed and self.checkpoint is None:
            raise ValueError("checkpoint is missing: give the folder of a trained supernet")
        if not is_timed and (self.input_shape or self.num_classes):
            raise ValueError(
                "input_shape and num_classes come from the checkpoint; "
                "they are allowed with device 'timed' only"
            )
        return self

    def _check_several(self) -> ServeConfig:
        if not self.models:
            raise ValueError("models is empty: name one or more")
        given = [key for key in ("checkpoint", "profile", "model_name") if getattr(self, key)]
        if given:
            raise ValueError(f"{', '.join(given)} and models exclude each other: name it in models")
        return self

    @property
    def tenant_shares(self) -> dict[str, float]:
        """The share of device time of each tenant that has one."""
        shares = {name: tenant.share for name, tenant in (self.tenants or {}).items()}
        return {name: share for name, share in shares.items() if share is not None}

    @model_validator(mode="after")
    def _check_doors(self) -> ServeConfig:
        if self.doors == 1:
            return self
        if self.security is not None:
            raise ValueError("security is served by one door only: give doors=1")
        cores = len(os.sched_getaffinity(0))
        if self.doors > cores:
            text = f"doors is {self.doors}, allowed 1 to {cores}"
            raise ValueError(f"{text}: the cores that this process may use")
        if self.max_inflight_bytes // self.doors < self.max_body_bytes:
            allowed = f"{self.doors * self.max_body_bytes} or more, max_body_bytes for each door"
            raise ValueError(f"max_inflight_bytes is {self.max_inflight_bytes}, allowed {allowed}")
        if self.max_connections is not None and self.max_connections < self.doors:
            text = f"max_connections is {self.max_connections}, allowed {self.doors} or more"
            raise ValueError(f"{text}, one for each door")
        if self.host.startswith("unix:") and self.grpc_port is not None:
            text = "doors share no UNIX socket over gRPC: give doors=1, a host, or no grpc_port"
            raise ValueError(text)
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> ServeConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both, or neither")
        if self.autoscaling is not None and self.replicas != 1:
            raise ValueError("replicas and autoscaling exclude each other: give min_replicas")
        if self.rate_limit_burst is not None and self.rate_limit_qps is None:
            raise ValueError("rate_limit_burst without rate_limit_qps: give the rate, too")
        if self.max_inflight_bytes < self.max_body_bytes:
            text = f"max_inflight_bytes is {self.max_inflight_bytes}, allowed max_body_bytes"
            raise ValueError(f"{text} ({self.max_body_bytes}) or more")
        return self


class LiveConfig(BaseModel):
    """The settings that a running server changes without a restart; None leaves one as it is.

    `max_batch_size` caps what is executed together, up to what the profile measured; requests may
    hold more samples than that. The settings are for all models; `models` has more for some.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str | None = None
    slo_ms: Milliseconds | None = None
    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    subnets: tuple[str, ...] | None = None
    max_batch_size: Annotated[int, Field(ge=1)] | None = None
    models: dict[ModelName, LiveConfig] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_keys(data, cls.model_fields, "live setting")
        return data


def parse_config(data: Mapping[str, Any]) -> ServeConfig:
    """Validate settings. Raises ServeConfigError: the setting, its value, what is allowed."""
    try:
        return ServeConfig.model_validate(data)
    except ValidationError as error:
        raise ServeConfigError(describe(error)) from None


def parse_live_config(data: Any) -> LiveConfig:
    """Validate a change of live settings. Raises ServeConfigError like `parse_config`."""
    try:
        return LiveConfig.model_validate(data)
    except ValidationError as error:
        raise ServeConfigError(describe(error)) from None


def read_config_file(path: Path) -> dict[str, Any]:
    """Read settings from a TOML or JSON file. Raises ServeConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ServeConfigError(f"{path}: no such file") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ServeConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ServeConfigError(f"{path}: expected a table of settings, got {type(data).__name__}")
    return data


def describe(error: ValidationError) -> str:
    """Return one line per fault: the setting, what is wrong with it, what was given."""
    lines: list[str] = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {text}, got {fault['input']!r}" if where else text)
    return "; ".join(lines)
