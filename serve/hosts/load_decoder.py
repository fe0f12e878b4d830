"""A decoder ready to write what a `ServeConfig` names: its executor, tokenizer, iteration costs.

As `load_device.py` for models that answer at once; both hosts come through here. A profile that was
measured on a grid of workers (`supernet profile --shards N --stages N`) has it run on such a grid.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serve.config import ServeConfig, ServeConfigError
from serve.engine.streams.stream_device import IterationExecutor
from serve.hosts.load_device import DEFAULT_NAME, name_of_device, read_checkpoint, read_profile
from serve.hosts.several_models import each_model
from serve.models.served_decoder import DecoderSpec
from serve.models.text_coder import ByteCoder, TextCoder
from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile, ProfileError
from slackfit.scheduling.streams.stream_scheduler import KV_TOKENS
from slackfit.streams.iteration_cost import IterationCosts, has_iterations
from slackfit.streams.stream_policy import StreamPolicy
from subnetact.parallel.worker_failure import WorkerFailedError
from subnetact.timed_decoder import TimedDecoder

if TYPE_CHECKING:
    from subnetact.decoding.stream_executor import StreamExecutor
    from subnetact.parallel.parallel_executor import ParallelExecutor
    from supernet.checkpoint import Checkpoint
    from supernet.families.decoder import DecoderConfig

logger = logging.getLogger(__name__)

STREAM_POLICY = "slackwidth"
_BATCH_POLICY = ServeConfig.model_fields["policy"].default
_KV_BYTES = 512 * 2**20
_TIMED_BLOCK_TOKENS = 64
_QUICK_TOKENS = 64
_QUICK_DECODES = (1, 4, 8)
_QUICK_REPEATS = 1


class LoadedDecoder(NamedTuple):
    """A decoder ready to run; the executor's cache has room for `kv_tokens` in blocks."""

    executor: IterationExecutor
    costs: IterationCosts
    coder: TextCoder
    spec: DecoderSpec
    kv_tokens: int
    block_tokens: int


def serves_streams(config: ServeConfig) -> bool:
    """Whether what one model's settings name is a decoder; what can't be read is none."""
    if config.device == "timed":
        return config.profile is not None and has_iterations(read_profile(config.profile))
    from supernet.registry import get_family

    try:
        header = json.loads((Path(config.checkpoint or "") / "supernet.json").read_text("utf-8"))
        return get_family(str(header["family"])).generates
    except (OSError, ValueError, KeyError, TypeError):
        return False  # who loads it says what is wrong


def count_workers(config: ServeConfig) -> int:
    """Return how many worker processes a replica of these settings starts, of all its models.

    Raises ServeConfigError or ProfileError as reading the profiles does.
    """
    return sum(map(_workers_of, each_model(config)))


def _workers_of(config: ServeConfig) -> int:
    if config.device != "cpu" or config.profile is None:
        return 0
    profile = read_profile(config.profile)
    parallel = IterationCosts.of(profile).parallel if has_iterations(profile) else None
    return 0 if parallel is None else parallel.shards * parallel.stages


def check_decoder(config: ServeConfig) -> None:
    """Raise what loading would raise, without measuring anything."""
    _check_undefended(config)
    given = None if config.profile is None else read_profile(config.profile)
    if given is not None:
        offered_costs(config, IterationCosts.of(given))
    if config.device != "timed":
        _check_fit(config, _read_decoder(config), given)
    _check_room(config.kv_tokens or KV_TOKENS, _block_tokens(config))


def load_decoder(config: ServeConfig) -> LoadedDecoder:
    """Load a decoder and costs that fit it, measuring some where none do.

    Raises ServeConfigError or ProfileError, a text of one line.
    """
    _check_undefended(config)
    given = None if config.profile is None else read_profile(config.profile)
    if config.device == "timed":
        assert given is not None, "checked by ServeConfig"
        return _load_timed(config, given)
    name_of_device(config)  # before anything is read
    checkpoint = _read_decoder(config)
    _check_fit(config, checkpoint, given)
    if given is not None:
        offered_costs(config, IterationCosts.of(given))  # before anything slow
    from subnetact.decoding.stream_executor import StreamExecutor
    from supernet.tokenizer import Tokenizer, TokenizerMissingError

    assert checkpoint.text is not None, "checked as it was read"
    try:
        coder = Tokenizer(checkpoint.text)
    except (TokenizerMissingError, ValueError) as error:
        raise ServeConfigError(f"checkpoint {config.checkpoint}: {error}") from None
    executor = _load_executor(config, checkpoint, given)
    if isinstance(executor, StreamExecutor):
        profile = _profile(config, executor, checkpoint, given)
    else:
        assert given is not None, "it was measured on workers"
        profile = given
    costs, vocab_size = IterationCosts.of(profile), _config(checkpoint).vocab_size
    spec = DecoderSpec(
        name=config.model_name or checkpoint.name.replace(" ", "-") or DEFAULT_NAME,
        vocab_size=vocab_size,
        max_positions=executor.max_positions,
        # A tokenizer may have more tokens than the network: of those none ever comes.
        eos_ids=frozenset(i for i in checkpoint.text.eos_ids if i < vocab_size),
        quality_kind=costs.quality_kind,
        fingerprint=checkpoint.fingerprint,
        profile=profile.name,
        device=profile.device,
        created=int(time.time()),
    )
    table = executor.cache.table if isinstance(executor, StreamExecutor) else executor.table
    return LoadedDecoder(executor, costs, coder, spec, table.capacity_tokens, table.block_tokens)


def _check_undefended(config: ServeConfig) -> None:
    if config.security is not None:
        raise ServeConfigError(
            "security hides no decoder's choice of widths: leave it out, or serve no decoder"
        )


def _block_tokens(config: ServeConfig) -> int:
    if config.device == "timed":
        return _TIMED_BLOCK_TOKENS
    from subnetact.load_streams import BLOCK_TOKENS

    return BLOCK_TOKENS[config.device]


def _check_room(kv_tokens: int, block_tokens: int) -> None:
    if kv_tokens < block_tokens:
        raise ServeConfigError(
            f"kv_tokens is {kv_tokens}, allowed a block of {block_tokens} or more"
        )


def offered_costs(
    config: ServeConfig, costs: IterationCosts
) -> tuple[IterationCosts, StreamPolicy, str]:
    """Return the offered widths, the policy for them, its name. Raises ServeConfigError."""
    name = STREAM_POLICY if config.policy == _BATCH_POLICY else config.policy
    try:
        offered = costs.select(config.subnets) if config.subnets else costs
        return offered, create_stream_policy(name, offered), name
    except (ProfileError, ValueError) as error:
        raise ServeConfigError(str(error)) from None


def _read_decoder(config: ServeConfig) -> Checkpoint:
    from subnetact.load_streams import stream_form

    try:
        stream_form(config.device, config.packing, config.dtype)
    except ValueError as error:
        raise ServeConfigError(str(error)) from None
    checkpoint = read_checkpoint(config)
    if checkpoint.text is None:
        raise ServeConfigError(
            f"checkpoint {config.checkpoint} has no tokenizer, so it makes no text; import a "
            "decoder with one (docs/decoder.md)"
        )
    return checkpoint


def _check_fit(config: ServeConfig, checkpoint: Checkpoint, given: LatencyProfile | None) -> None:
    if given is not None:
        is_cpu = config.device == "cpu"
        runnable = checkpoint.forms if is_cpu else checkpoint.subnets  # one bit is a CPU's
        given.check_serves(
            checkpoint=checkpoint.fingerprint,
            device=given.device,
            threads=config.threads if is_cpu else None,
            subnet_ids=[subnet.subnet_id for subnet in runnable],
        )


def _config(checkpoint: Checkpoint) -> DecoderConfig:
    from supernet.families.decoder import DecoderConfig

    config = checkpoint.definition.config
    assert isinstance(config, DecoderConfig), "of decoders alone"
    return config


def _load_executor(
    config: ServeConfig, checkpoint: Checkpoint, given: LatencyProfile | None
) -> StreamExecutor | ParallelExecutor:
    """Return the executor that runs here, or on workers where a profile of this device has them.

    With the packing and dtype asked for, else those that the profile was measured with.
    """
    import torch

    from subnetact.decoding.kv_cache import CacheShape
    from subnetact.load import mebibytes
    from subnetact.load_streams import STREAM_PACKINGS, load_stream_executor, stream_form

    device, of = name_of_device(config), _config(checkpoint)
    block_tokens = _block_tokens(config)
    packing, dtype = config.packing, config.dtype
    if given is not None and given.packing in STREAM_PACKINGS[config.device]:
        packing = packing or given.packing
    if given is not None and given.device == device:
        dtype = dtype or given.dtype
    packing, dtype = stream_form(config.device, packing, dtype)
    shape = CacheShape(of.depth, of.num_kv_heads, of.head_dim)
    fitting = min(_KV_BYTES // shape.token_bytes(getattr(torch, dtype)), KV_TOKENS)
    kv_tokens = config.kv_tokens or max(fitting, of.max_positions)
    _check_room(kv_tokens, block_tokens)
    try:
        if given is not None and IterationCosts.of(given).parallel is not None:
            if (given.device, given.packing) == (device, packing):
                return _start_workers(
                    config,
                    checkpoint,
                    given,
                    packing=packing,
                    kv_tokens=kv_tokens,
                    block_tokens=block_tokens,
                )
            logger.warning("profile %s is of workers elsewhere: served on one", config.profile)
        executor = load_stream_executor(
            checkpoint,
            device=config.device,
            threads=config.threads,
            capacity_tokens=kv_tokens,
            packing=packing,
            dtype=dtype,
            most_decodes=config.max_running,
            graph_budget_bytes=mebibytes(config.graph_mib),
        )
    except torch.OutOfMemoryError:
        text = f"the decoder and kv_tokens {kv_tokens} do not fit into the memory of {device}"
        raise ServeConfigError(f"{text}; give fewer") from None
    except (ValueError, WorkerFailedError) as error:
        raise ServeConfigError(str(error)) from None
    executor.warm_up()
    return executor


def _start_workers(
    config: ServeConfig,
    checkpoint: Checkpoint,
    profile: LatencyProfile,
    *,
    packing: str,
    kv_tokens: int,
    block_tokens: int,
) -> ParallelExecutor:
    """Start the grid of workers that a profile was measured on, with `kv_tokens` over its shards.

    Workers are taken to hang in half the time that the engine gives the whole device, and loading
    ones are awaited in it, so one that does costs its streams and not the replica. Raises
    ValueError as `ParallelExecutor`.
    """
    from subnetact.parallel.parallel_executor import ParallelExecutor

    costs = IterationCosts.of(profile)
    shards = 1 if costs.parallel is None else costs.parallel.shards
    blocks = -(-kv_tokens // (shards * block_tokens))
    return ParallelExecutor.for_costs(
        checkpoint,
        costs,
        folder=config.checkpoint,
        capacity_tokens=blocks * block_tokens,
        block_tokens=block_tokens,
        threads=config.threads,
        packing=packing,
        hung_after_s=config.hung_after_s / 2,
    )


def _profile(
    config: ServeConfig,
    executor: StreamExecutor,
    checkpoint: Checkpoint,
    given: LatencyProfile | None,
) -> LatencyProfile:
    """Return the profile that was given, where it is of this device, else measure a short one."""
    from subnetact.profiling.iteration_profiler import MAX_ERROR, measure_iterations

    device = name_of_device(config)
    of_this = (device, executor.packing, executor.dtype)
    if given is not None and (given.device, given.packing, given.dtype) == of_this:
        return given
    if given is not None:
        text = "profile %s was measured on %r with packing %s in %s, this is %r with %s in %s"
        theirs = (given.device, given.packing, given.dtype)
        logger.warning(text, config.profile, *theirs, *of_this)
    logger.warning("no profile of this decoder here is at hand: measuring a short one")
    table = executor.cache.table
    most = table.capacity_tokens // (8 * _QUICK_TOKENS)  # a context of the profiler, and its chunk
    decodes = [count for count in _QUICK_DECODES if count <= max(1, most)]
    profile = measure_iterations(
        executor, checkpoint, decodes=decodes, repeats=_QUICK_REPEATS, max_error=math.inf
    )
    error = IterationCosts.of(profile).extra["held_out_error"]["mean"]
    if error > MAX_ERROR:
        text = "the short profile is off by %.0f %% on average; corrected while serving, but a "
        logger.warning(text + "`supernet profile` on an idle machine is better", error * 100)
    return profile


def _load_timed(config: ServeConfig, profile: LatencyProfile) -> LoadedDecoder:
    text = "device 'timed': nothing is computed, iterations sleep for their predicted time"
    logger.warning(text)
    costs = IterationCosts.of(profile)
    kv_tokens, block_tokens = config.kv_tokens or KV_TOKENS, _block_tokens(config)
    _check_room(kv_tokens, block_tokens)
    coder = ByteCoder()
    executor = TimedDecoder(
        costs,
        vocab_size=coder.vocab_size,
        capacity_tokens=kv_tokens,
        block_tokens=block_tokens,
    )
    spec = DecoderSpec(
        name=config.model_name or DEFAULT_NAME,
        vocab_size=coder.vocab_size,
        max_positions=kv_tokens,
        eos_ids=frozenset((TimedDecoder.eos_token,)),
        quality_kind=costs.quality_kind,
        profile=profile.name,
        device=profile.device,
        created=int(time.time()),
    )
    return LoadedDecoder(
        executor, costs, coder, spec, kv_tokens // block_tokens * block_tokens, block_tokens
    )
