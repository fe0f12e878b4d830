"""Every query has exactly one outcome, whatever happens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import STATUSES, Decision, Query
from slackfit.scheduling.scheduler import PolicyError, Scheduler

PROFILE = LatencyProfile(
    name="duo",
    device="none",
    dtype="none",
    batch_sizes=(1, 4),
    subnets=(
        SubnetProfile(subnet_id="a", accuracy=0.5, macs=1, latency_s={"p50": (1.0, 2.0)}),
        SubnetProfile(subnet_id="b", accuracy=0.9, macs=2, latency_s={"p50": (2.0, 6.0)}),
    ),
)


class Whimsical:
    """A policy that does what the drawn numbers say: decides, waits, raises, talks nonsense."""

    name = "whimsical"
    drop_hopeless = True

    def __init__(self, whims: list[int]) -> None:
        self.whims = whims

    def decide(self, view, now_s):
        whim = self.whims.pop() if self.whims else 0
        if whim == 1:
            return None
        if whim == 2:
            raise RuntimeError("a whim")
        if whim == 3:
            return Decision("nonsense", 99)
        return Decision("ab"[whim % 2], 1 + whim % 4)


queries = st.tuples(
    st.floats(0.0, 8.0),  # slo_s
    st.sampled_from([0.0, 0.0, 0.5, 0.7, 0.95]),
    st.sampled_from([None, None, "a", "b", "none"]),
)
steps = st.one_of(
    st.tuples(st.just("submit"), queries),
    st.tuples(st.just("submit_all"), st.lists(queries, max_size=4)),
    st.tuples(st.just("cancel"), st.integers(0, 60)),
    st.tuples(st.just("poll"), st.sampled_from([None, 0, 1])),
    st.tuples(st.just("behind"), st.sampled_from([0, 1])),
    st.tuples(st.just("complete"), st.integers(0, 3)),
    st.tuples(st.just("fail"), st.integers(0, 3)),
    st.tuples(st.just("drain"), st.none()),
    st.tuples(st.just("drop"), st.booleans()),
    st.tuples(st.just("profile"), st.sampled_from([["a"], ["b"], ["a", "b"]])),
)


class Driver:
    """Makes the drawn calls and gathers the outcomes."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.now_s = 0.0
        self.submitted = 0
        self.running: list[int] = []
        self.outcomes = []

    def step(self, verb: str, value) -> None:
        self.now_s += 0.5
        scheduler = self.scheduler
        if verb == "submit":
            self.outcomes += filter(None, [scheduler.submit(self.make(value), self.now_s)])
        elif verb == "submit_all":
            self.outcomes += scheduler.submit_all([self.make(each) for each in value])
        elif verb == "cancel":
            self.outcomes += filter(None, [scheduler.cancel(value, self.now_s)])
        elif verb == "poll":
            self.poll(value)
        elif verb == "behind":
            self.poll(value, behind=True)
        elif verb in ("complete", "fail") and self.running:
            batch_id = self.running.pop(value % len(self.running))
            reason = () if verb == "complete" else ("broken",)
            self.outcomes += getattr(scheduler, verb)(batch_id, self.now_s, *reason)
        elif verb == "drain":
            scheduler.drain()
        elif verb == "drop":
            scheduler.reconfigure(drop_hopeless=value)
        elif verb == "profile":
            scheduler.reconfigure(profile=PROFILE.select(value))

    def make(self, drawn) -> Query:
        slo_s, floor, pin = drawn
        query_id = self.submitted
        self.submitted += 1
        deadline_s = self.now_s + slo_s
        return Query(query_id, self.now_s, deadline_s, min_accuracy=floor, subnet_id=pin)

    def poll(self, worker_id: int | None = None, *, behind: bool = False) -> bool:
        poll = self.scheduler.poll_behind if behind else self.scheduler.poll
        try:
            batch, dropped = poll(self.now_s, worker_id)
        except PolicyError:
            return False
        self.outcomes += dropped
        if batch is not None:
            assert 1 <= len(batch.queries) <= 4
            deadlines = [query.deadline_s for query in batch.queries]
            assert deadlines == sorted(deadlines)
            for query in batch.queries:
                assert query.subnet_id in (None, batch.subnet_id)
                assert query.min_accuracy <= PROFILE.accuracy(batch.subnet_id)
            self.running.append(batch.batch_id)
        return batch is not None

    def run_out(self) -> None:
        """Serve what is left with a policy that behaves."""
        self.scheduler.reconfigure(policy=Whimsical([]), profile=PROFILE)
        while self.running or len(self.scheduler):
            self.now_s += 0.5
            for batch_id in self.running:
                self.outcomes += self.scheduler.complete(batch_id, self.now_s)
            self.running.clear()
            while self.poll():
                pass
        self.poll()  # hands out what a failed poll had dropped


@settings(max_examples=150, deadline=None)
@given(
    st.lists(steps, max_size=40),
    st.lists(st.integers(0, 7), max_size=30),
    st.sampled_from([None, 2, 5]),
)
def test_every_query_has_exactly_one_outcome(calls, whims, max_queue):
    scheduler = Scheduler(PROFILE, Whimsical(whims), num_workers=2, max_queue=max_queue)
    driver = Driver(scheduler)
    for verb, value in calls:
        driver.step(verb, value)
        ended = {outcome.query_id for outcome in driver.outcomes}
        assert len(ended) == len(driver.outcomes)
        assert max_queue is None or len(scheduler) <= max_queue
    driver.run_out()
    assert sorted(o.query_id for o in driver.outcomes) == list(range(driver.submitted))
    assert {o.status for o in driver.outcomes} <= set(STATUSES)
    assert (len(scheduler), scheduler.num_running) == (0, 0)
    for outcome in driver.outcomes:
        ran = outcome.status in ("on_time", "late", "failed")
        assert (outcome.start_s is not None) == ran == bool(outcome.batch_size)
        assert (outcome.reason == "") == (outcome.status in ("on_time", "late"))
