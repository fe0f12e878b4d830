"""SlackFit and the fixed subnet, decision by decision, on the paper's table."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slackfit.policies import create_policy, policy_names
from slackfit.policies.slackfit import SlackFit
from slackfit.policy import WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Decision, Query
from slackfit.scheduling.edf import EdfQueue


class SlackView:
    """A queue of one query with the given slack at time 0."""

    memo = None
    worker = WorkerView(0, 0.0, None)
    workers = (worker,)

    def __init__(self, profile: LatencyProfile, slack_s: float) -> None:
        self.profile = profile
        self.queue = EdfQueue()
        self.queue.push(Query(query_id=0, arrival_s=0.0, deadline_s=slack_s))

    def arrivals_within(self, window_s: float) -> int:
        return 1


def decided(policy, profile: LatencyProfile, slack_ms: float) -> tuple[str, int]:
    decision = policy.decide(SlackView(profile, slack_ms * 1e-3), 0.0)
    return decision.subnet_id.removeprefix("resnet-"), decision.batch_size


# 10 buckets of 2.929 ms from 1.41 ms; the pairs kept are those at 1.41, 4.09, 6.64, 9.38, 11.5,
# 18.6, 19.3 and 30.7 ms (worked out by hand from the table).
@pytest.mark.parametrize(
    ("slack_ms", "pair", "bucket"),
    [
        (1.0, ("73.82", 16), ("73.82", 16)),  # hopeless: the largest batch on the fastest
        (2.0, ("73.82", 1), ("73.82", 1)),
        (4.2, ("73.82", 8), ("73.82", 1)),  # 4.09 ms fits, its bucket ends at 4.34 ms
        (4.5, ("73.82", 8), ("73.82", 8)),
        (7.0, ("78.25", 8), ("73.82", 8)),
        (9.9, ("76.69", 16), ("78.25", 8)),
        (19.0, ("79.44", 16), ("79.44", 16)),
        (25.0, ("80.16", 8), ("80.16", 8)),
        (36.0, ("80.16", 16), ("80.16", 16)),
        (float("inf"), ("80.16", 16), ("80.16", 16)),
    ],
)
def test_slackfit_chooses_the_last_bucket_that_the_slack_affords(resnet, slack_ms, pair, bucket):
    for variant, expected in (("pair", pair), ("bucket", bucket)):
        policy = create_policy("slackfit", resnet, num_buckets=10, variant=variant)
        assert decided(policy, resnet, slack_ms) == expected


def test_a_pair_that_takes_all_of_the_slack_does_not_fit():
    profile = LatencyProfile.from_json(
        {
            "format": 1,
            "name": "p",
            "device": "",
            "dtype": "",
            "batch_sizes": [1, 2],
            "subnets": [{"id": "a", "accuracy": 0.5, "latency_ms": {"p50": [1.0, 2.0]}}],
        }
    )
    policy = create_policy("slackfit", profile, num_buckets=4)
    assert policy.decide(SlackView(profile, 0.002), 0.0) == Decision("a", 1)


def test_of_equally_large_batches_in_a_bucket_the_more_accurate_subnet_is_kept(resnet):
    policy = create_policy("slackfit", resnet, num_buckets=1)
    assert decided(policy, resnet, 31.0) == ("80.16", 16)


@given(
    st.sampled_from(["pair", "bucket"]),
    st.integers(1, 60),
    st.floats(0.0, 40.0),
)
def test_slackfit_never_chooses_a_pair_that_the_slack_cannot_afford(
    resnet, variant, num_buckets, slack_ms
):
    policy = create_policy("slackfit", resnet, num_buckets=num_buckets, variant=variant)
    decision = policy.decide(SlackView(resnet, slack_ms * 1e-3), 0.0)
    latency_s = resnet.latency_s(decision.subnet_id, decision.batch_size)
    is_hopeless = slack_ms <= 1.41
    assert latency_s <= slack_ms * 1e-3 or is_hopeless
    if is_hopeless and slack_ms < 1.41:
        assert (decision.subnet_id, decision.batch_size) == ("resnet-73.82", 16)


@given(
    st.sampled_from(["pair", "bucket"]),
    st.integers(1, 9),
    st.floats(1.5, 40.0),
    st.floats(1.5, 40.0),
)
def test_more_slack_never_lowers_the_accuracy_where_the_policy_says_so(
    resnet, variant, num_buckets, one_ms, other_ms
):
    policy = SlackFit(resnet, num_buckets=num_buckets, variant=variant)
    assert policy.is_monotone
    less, more = (decided(policy, resnet, slack_ms)[0] for slack_ms in sorted((one_ms, other_ms)))
    assert float(less) <= float(more)


def test_many_buckets_are_not_monotone_and_the_policy_knows(resnet, dynabert):
    assert not SlackFit(resnet, num_buckets=10).is_monotone
    assert SlackFit(dynabert, num_buckets=4).is_monotone
    assert not SlackFit(dynabert, num_buckets=5).is_monotone


@pytest.mark.parametrize(
    ("slack_ms", "size"),
    [(1.0, 16), (1.5, 1), (2.0, 2), (2.53, 2), (4.1, 8), (7.4, 16), (100.0, 16)],
)
def test_a_fixed_subnet_takes_the_largest_batch_that_fits_the_slack(resnet, slack_ms, size):
    policy = create_policy("fixed:smallest", resnet)
    assert decided(policy, resnet, slack_ms) == ("73.82", size)


@pytest.mark.parametrize(
    ("slack_ms", "maxacc", "maxbatch"),
    [
        (1.41, ("73.82", 16), ("73.82", 16)),  # nothing is in time
        (2.0, ("76.69", 1), ("73.82", 2)),
        (5.0, ("80.16", 1), ("73.82", 8)),
        (12.0, ("80.16", 4), ("78.25", 16)),
        (36.0, ("80.16", 16), ("80.16", 16)),
    ],
)
def test_maxacc_and_maxbatch_prefer_what_their_names_say(resnet, slack_ms, maxacc, maxbatch):
    assert decided(create_policy("maxacc", resnet), resnet, slack_ms) == maxacc
    assert decided(create_policy("maxbatch", resnet), resnet, slack_ms) == maxbatch


@given(st.floats(1.5, 40.0), st.floats(1.5, 40.0))
def test_more_slack_never_lowers_the_accuracy_of_maxacc(resnet, one_ms, other_ms):
    policy = create_policy("maxacc", resnet)
    less, more = (decided(policy, resnet, slack_ms)[0] for slack_ms in sorted((one_ms, other_ms)))
    assert float(less) <= float(more)


@pytest.mark.parametrize("name", ["slackfit", "maxacc", "maxbatch", "fixed:smallest"])
def test_policies_follow_a_new_profile(resnet, name):
    fewer = resnet.select(["resnet-76.69"])
    if name.startswith("fixed"):
        fewer = resnet.select(["resnet-73.82"])
    policy = create_policy(name, resnet)
    decided(policy, resnet, 36.0)
    expected = decided(create_policy(name, fewer), fewer, 36.0)
    assert decided(policy, fewer, 36.0) == expected


def test_fixed_names_are_resolved_by_accuracy(resnet):
    names = [create_policy(f"fixed:{w}", resnet).name for w in ("smallest", "middle", "largest")]
    assert names == ["fixed:resnet-73.82", "fixed:resnet-78.25", "fixed:resnet-80.16"]
    assert create_policy("fixed:resnet-77.64", resnet).name == "fixed:resnet-77.64"


def test_every_listed_name_can_be_made(resnet):
    for name in policy_names():
        made = create_policy(name.replace("<subnet_id>", "resnet-77.64"), resnet)
        assert made.name.split(":")[0] == name.split(":")[0]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("clever", {}, "policy 'clever' is unknown, allowed slackfit, "),
        (
            "fixed:huge",
            {},
            "policy 'fixed:huge' names a subnet that profile 'superserve_resnet_2080ti' does not "
            "have, allowed after 'fixed:': smallest, middle, largest, resnet-73.82, ",
        ),
        (
            "slackfit",
            {"buckets": 3},
            "policy 'slackfit' has no parameter buckets; it has num_buckets, variant, quantile, "
            "drop_hopeless",
        ),
        ("slackfit", {"num_buckets": 0}, "num_buckets is 0, allowed 1 or more"),
        ("slackfit", {"variant": "third"}, "variant is 'third', allowed pair, bucket"),
        ("slackfit@num_buckets=x", {}, "num_buckets of policy 'slackfit' is 'x', allowed a whole "),
        ("slackfit", {"num_buckets": 8.0}, "num_buckets of policy 'slackfit' is 8.0, allowed a wh"),
        ("drainfit@reserve=much", {}, "reserve of policy 'drainfit' is 'much', allowed a number"),
        ("drainfit", {"reserve": True}, "reserve of policy 'drainfit' is True, allowed a number"),
        ("fixed:smallest@drop_hopeless=1", {}, "drop_hopeless of policy 'fixed:smallest' is 1, al"),
    ],
)
def test_unknown_names_and_parameters_list_the_known_ones(resnet, name, params, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        create_policy(name, resnet, **params)
