"""A device ready to run what a `ServeConfig` names: checkpoint, executor, and a profile that fits.

Both hosts (uvicorn and the Ray replica) come through here, so both refuse the same things.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serve.config import ServeConfig, ServeConfigError
from slackfit.policies import create_policy
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from subnetact.timed_executor import TimedExecutor
from supernet.sample import SampleSpec

if TYPE_CHECKING:
    from subnetact.executor import Executor
    from supernet.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

DEFAULT_NAME = "supernet"
_QUICK_REPEATS = 5
_QUICK_BATCH_SIZES = (1, 2, 4, 8, 16)


class LoadedDevice(NamedTuple):
    """A device ready to run: its executor, its profile, the name of what it serves."""

    executor: Executor
    profile: LatencyProfile
    name: str


def check_model(config: ServeConfig) -> None:
    """Raise what `load` would raise, without touching the device."""
    given = None if config.profile is None else read_profile(config.profile)
    if config.device != "timed":
        checkpoint = read_checkpoint(config)
        _check_fit(given, checkpoint, config)
        offer(config, given or _stand_in(checkpoint))
    elif given is not None:
        offer(config, given)


def load(config: ServeConfig) -> LoadedDevice:
    """Load the executor and a profile that fits it, measuring a short one where none does.

    A profile of another checkpoint, thread count or set of subnets is an error: it was given for
    something else. One of another device is only of no use here: a warning, and a fresh one.
    """
    given = None if config.profile is None else read_profile(config.profile)
    if config.device == "timed":
        return _load_timed(config, given)
    device = name_of_device(config)
    checkpoint = read_checkpoint(config)
    _check_fit(given, checkpoint, config)
    if given is not None:  # profiles of before do not say it
        given = replace(given, output_kind=checkpoint.definition.output.kind)
    offer(config, given or _stand_in(checkpoint))  # before anything slow
    executor = _load_executor(config, checkpoint, given, device)
    name = config.model_name or checkpoint.name or DEFAULT_NAME
    if given is not None and given.device == device and _is_readable(given, config):
        _follow(executor, given)
        executor.warm_up()  # a profile is of a warm device: algorithms chosen, graphs captured
        return LoadedDevice(executor, _revalidated(executor, given), name)
    if given is not None and given.device == device:
        text = "profile %s was measured with packing %s, which there is no more"
        logger.warning(text, config.profile, given.packing)
    elif given is not None:
        text = "profile %s was measured on %r, this device is %r"
        logger.warning(text, config.profile, given.device, device)
    logger.warning("no profile of this device is at hand: measuring a short one")
    measured = _measure_quickly(executor, checkpoint)
    _follow(executor, measured)
    return LoadedDevice(executor, measured, name)


def _follow(executor: Executor, profile: LatencyProfile) -> None:
    """Have what the executor can have of what it launches, where the profile has both times."""
    follow = getattr(executor, "follow", None)
    if follow is not None and not follow(profile):
        text = "profile %s does not say what batches take without a graph: all are captured at once"
        logger.info(text, profile.name)


def _revalidated(executor: Executor, given: LatencyProfile) -> LatencyProfile:
    from subnetact.profiling.revalidation import revalidated

    return revalidated(executor, given)


def read_checkpoint(config: ServeConfig) -> Checkpoint:
    """Read the checkpoint that `config` names. Raises ServeConfigError."""
    from supernet import CheckpointError, load_checkpoint

    assert config.checkpoint is not None, "checked by ServeConfig"
    if not Path(config.checkpoint).is_dir():
        raise ServeConfigError(f"checkpoint {config.checkpoint}: no such folder")
    try:
        return load_checkpoint(config.checkpoint)
    except CheckpointError as error:
        raise ServeConfigError(str(error)) from None


def _load_executor(
    config: ServeConfig, checkpoint: Checkpoint, given: LatencyProfile | None, device: str
) -> Executor:
    """Load with the packing and dtype asked for, else those the profile was measured with here."""
    from subnetact.load import load_executor, mebibytes

    packing, dtype = config.packing, config.dtype
    fits = given is not None and given.device == device and _is_readable(given, config)
    if given is not None and fits and packing in (None, given.packing):
        packing = given.packing
        dtype = dtype or given.dtype
    try:
        return load_executor(
            checkpoint,
            device=config.device,
            threads=config.threads,
            max_batch_size=config.max_batch_size if given is None else given.max_batch_size,
            packing=packing,
            budget_bytes=mebibytes(config.cache_mib),
            dtype=dtype,
            batch_sizes=None if given is None else given.batch_sizes,
            graph_budget_bytes=mebibytes(config.graph_mib),
        )
    except ValueError as error:
        raise ServeConfigError(str(error)) from None


def _is_readable(given: LatencyProfile, config: ServeConfig) -> bool:
    """Whether weights can still be read in the form that a profile of this device names."""
    from subnetact.load import PACKINGS

    kind = config.device.partition(":")[0]
    return given.packing is None or given.packing in PACKINGS.get(kind, ())


def name_of_device(config: ServeConfig) -> str:
    from subnetact.device import device_name

    try:
        return device_name(config.device)
    except ValueError as error:
        raise ServeConfigError(str(error)) from None


def _check_fit(given: LatencyProfile | None, checkpoint: Checkpoint, config: ServeConfig) -> None:
    if given is not None:
        given.check_serves(
            checkpoint=checkpoint.fingerprint,
            device=given.device,
            threads=config.threads if config.device == "cpu" else None,
            subnet_ids=[form.subnet_id for form in checkpoint.forms],
        )


def offer(config: ServeConfig, profile: LatencyProfile) -> tuple[LatencyProfile, Policy]:
    """Return the offered part of a profile and the policy for it. Raises ServeConfigError."""
    try:
        offered = profile.select(config.subnets) if config.subnets else profile
        policy = create_policy(config.policy, offered)
    except (ProfileError, ValueError) as error:
        raise ServeConfigError(str(error)) from None
    if config.security is not None:
        from serve.security.lattice import Lattice

        Lattice(offered, config.security)  # whether a subnet can hide among those
    return offered, policy


def _stand_in(checkpoint: Checkpoint) -> LatencyProfile:
    """Return a profile with a checkpoint's subnets and made-up latencies, to check names against.

    Unknown policies and subnets are to be refused before the real one is measured.
    """
    most = max(subnet.macs for subnet in checkpoint.subnets)
    return LatencyProfile(
        name=checkpoint.name or DEFAULT_NAME,
        device="",
        dtype="",
        batch_sizes=(1,),
        subnets=tuple(
            SubnetProfile(
                subnet_id=subnet.subnet_id,
                accuracy=subnet.accuracy,
                macs=subnet.macs,
                latency_s={"p50": (1e-3 * (1 + subnet.macs / max(most, 1)),)},
            )
            for subnet in checkpoint.forms
        ),
    )


def _measure_quickly(executor: Executor, checkpoint: Checkpoint) -> LatencyProfile:
    from subnetact import measure_profile

    sizes = [size for size in _QUICK_BATCH_SIZES if size <= executor.max_batch_size]
    return measure_profile(executor, checkpoint, batch_sizes=sizes, repeats=_QUICK_REPEATS)


def read_profile(path: str) -> LatencyProfile:
    """Read a profile. Raises ServeConfigError when there is none, ProfileError when malformed."""
    try:
        return LatencyProfile.load(path)
    except FileNotFoundError:
        raise ServeConfigError(f"profile {path}: no such file") from None


def _load_timed(config: ServeConfig, profile: LatencyProfile | None) -> LoadedDevice:
    assert profile is not None, "checked by ServeConfig"
    if config.checkpoint is not None:
        return _load_paced(config, profile)
    logger.warning("device 'timed': nothing is computed, batches sleep for their profiled latency")
    sample = SampleSpec(shape=config.input_shape or (3, 32, 32))
    executor = TimedExecutor(profile, sample, config.num_classes or 10)
    return LoadedDevice(executor, profile, config.model_name or DEFAULT_NAME)


def _load_paced(config: ServeConfig, profile: LatencyProfile) -> LoadedDevice:
    """Load the labelled fake whose outputs are real: a CPU's, at the profile's pace."""
    from subnetact.load import load_executor

    logger.warning("device 'timed': batches take their profiled latency, whatever they cost here")
    checkpoint = read_checkpoint(config)
    outputs = load_executor(
        checkpoint, threads=config.threads, max_batch_size=profile.max_batch_size
    )
    try:
        profile.check_serves(
            checkpoint=profile.checkpoint,
            device=profile.device,
            threads=None,
            subnet_ids=[form.subnet_id for form in checkpoint.forms],
        )
    except ProfileError:
        outputs.close()
        raise
    executor = TimedExecutor(profile, outputs.sample, outputs.num_classes, outputs=outputs)
    return LoadedDevice(executor, profile, config.model_name or checkpoint.name or DEFAULT_NAME)
