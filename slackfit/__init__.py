"""SlackFit: which subnet, which batch, now? The scheduling of a supernet as plain Python values.

In scope: deadlines, queues, policies, latency profiles, simulation in virtual time, metrics.
Out of scope: clocks, threads, networks, tensors, payloads. Needs numpy and nothing else.
"""

from slackfit.derive import densified, with_overhead
from slackfit.edf import EdfQueue
from slackfit.metrics import summarize
from slackfit.policies import create_policy, policy_names
from slackfit.policy import Policy, QueueView, View, WorkerView
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from slackfit.query import STATUSES, Batch, Decision, Outcome, Query, Status
from slackfit.record import LogError, RecordingScheduler, ReplayDifferenceError, replay_log
from slackfit.scheduler import Dispatch, PolicyError, Scheduler
from slackfit.simulate import simulate

__all__ = [
    "STATUSES",
    "Batch",
    "Decision",
    "Dispatch",
    "EdfQueue",
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
    "Status",
    "SubnetProfile",
    "View",
    "WorkerView",
    "create_policy",
    "densified",
    "policy_names",
    "replay_log",
    "simulate",
    "summarize",
    "with_overhead",
]
