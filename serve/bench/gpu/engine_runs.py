"""Runs of the server's engine without a door: one request at a time, or a queue that is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from math import inf
from statistics import median

import numpy as np

from serve.engine.engine import Engine
from serve.engine.job import Job
from serve.engine.reply import RequestOptions
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.scheduling.scheduler import Scheduler
from subnetact.cuda.cuda_executor import CudaExecutor
from supernet import Arch


def rough_profile(executor: CudaExecutor, arch: Arch, samples: np.ndarray) -> LatencyProfile:
    """Return a profile of one subnet whose largest batch is `samples`; rough, nothing is due."""
    taken_s: list[float] = []
    for _ in range(3):
        start_s = time.perf_counter()
        executor.run(arch.subnet_id, samples)
        taken_s.append(time.perf_counter() - start_s)
    latency_s: Mapping[str, tuple[float, ...]] = {"p50": (median(taken_s),)}
    subnet = SubnetProfile(subnet_id=arch.subnet_id, accuracy=0.5, macs=0, latency_s=latency_s)
    return LatencyProfile(
        name="rough",
        device=executor.device,
        dtype=executor.dtype,
        batch_sizes=(len(samples),),
        subnets=(subnet,),
    )


def served_per_s(
    executor: CudaExecutor, profile: LatencyProfile, samples: np.ndarray, num_batches: int
) -> float:
    """Return the samples per second of `num_batches` full batches that all wait at the start.

    `samples` are one batch; each request has one of them. Raises RuntimeError if one is not served.
    """
    engine = _engine(executor, profile)
    count = num_batches * len(samples)

    async def serve() -> float:
        ended = asyncio.Event()
        done: list[Job] = []

        def note(job: Job) -> None:
            done.append(job)
            if len(done) == count:
                ended.set()

        await engine.start()
        start_s = engine.clock()
        for number in range(count):
            own = samples[number % len(samples)][None]
            engine.submit(own, arrival_s=start_s, options=RequestOptions(inf), on_done=note)
        await ended.wait()
        taken_s = engine.clock() - start_s
        await engine.stop()
        failed = [job for job in done if any(r is None or r.output is None for r in job.replies)]
        if failed:
            raise RuntimeError(f"{len(failed)} of {count} samples were not served")
        return count / taken_s

    return asyncio.run(serve())


def alone_s(
    executor: CudaExecutor, profile: LatencyProfile, samples: np.ndarray, rounds: int
) -> float:
    """Return the median seconds of a request of `samples` that finds an engine with nothing to do.

    From `infer` to its answer, three that do not count apart. Raises RuntimeError if it has none.
    """
    engine = _engine(executor, profile)

    async def ask() -> list[float]:
        await engine.start()
        taken_s: list[float] = []
        for number in range(-3, rounds):
            start_s = engine.clock()
            (reply,) = await engine.infer(
                samples, arrival_s=start_s, options=RequestOptions(deadline_s=inf)
            )
            if reply.output is None:
                raise RuntimeError(f"a request was not served: {reply.outcome.reason}")
            if number >= 0:
                taken_s.append(engine.clock() - start_s)
        await engine.stop()
        return taken_s

    return median(asyncio.run(ask()))


def _engine(executor: CudaExecutor, profile: LatencyProfile) -> Engine:
    policy = create_policy(f"fixed:{profile.subnet_ids[0]}", profile)
    return Engine(Scheduler(profile, policy), executor)
