"""SlackFit: which subnet, which batch, now? The scheduling of a supernet as plain Python values.

In scope: deadlines, queues, policies, latency profiles, simulation in virtual time, metrics.
Out of scope: clocks, threads, networks, tensors, payloads. Needs numpy and nothing else.
"""

from slackfit.bounds.bound import utility_bound
from slackfit.derive import densified, with_overhead
from slackfit.metrics import summarize
from slackfit.policies import create_policy, policy_names
from slackfit.policy import Policy, QueueView, View, WorkerView
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from slackfit.query import STATUSES, Batch, Decision, Outcome, Query, Status
from slackfit.scheduling.edf import EdfQueue
from slackfit.scheduling.record import (
    LogError,
    RecordingScheduler,
    ReplayDifferenceError,
    replay_log,
)
from slackfit.scheduling.scheduler import Dispatch, PolicyError, Scheduler
from slackfit.simulation.devices import DeviceModel, Failure, Slowdown
from slackfit.simulation.simulate import simulate
from slackfit.simulation.stream import simulate_stream

__all__ = [
    "STATUSES",
    "Batch",
    "Decision",
    "DeviceModel",
    "Dispatch",
    "EdfQueue",
    "Failure",
    "LatencyProfile",
    "LogError",
    "Outcome",
    "Policy",
    "PolicyError",
    "ProfileError",
    "Query",
    "QueueView",
    "RecordingScheduler",
    "ReplayDifferenceError",
    "Scheduler",
    "Slowdown",
    "Status",
    "SubnetProfile",
    "View",
    "WorkerView",
    "create_policy",
    "densified",
    "policy_names",
    "replay_log",
    "simulate",
    "simulate_stream",
    "summarize",
    "utility_bound",
    "with_overhead",
]
