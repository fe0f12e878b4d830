"""The executor that sleeps."""

from __future__ import annotations

import numpy as np
import pytest

from slackfit.profile import LatencyProfile, ProfileError
from subnetact.timed_executor import TimedExecutor
from supernet.sample import SampleSpec

pytestmark = pytest.mark.alone


@pytest.fixture
def executor(profile: LatencyProfile) -> TimedExecutor:
    now_s = [0.0]

    def sleep(duration_s: float) -> None:
        now_s[0] += duration_s

    timed = TimedExecutor(
        profile, SampleSpec(shape=(1, 2, 2)), 10, clock=lambda: now_s[0], sleep=sleep
    )
    timed.now_s = now_s  # type: ignore[attr-defined]
    return timed


def test_batch_takes_its_profiled_time(executor):
    executor.run("middle", np.zeros((2, 1, 2, 2), dtype=np.uint8))
    assert executor.now_s[0] == pytest.approx(0.003)


def test_answer_is_a_function_of_the_sample(executor):
    inputs = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    logits = executor.run("small", inputs)
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [6, 2, 8]
    assert logits.sum() == 3


def test_unknown_subnet_wrong_shape_and_unprofiled_batch_are_refused(executor):
    with pytest.raises(ProfileError, match="it has small, middle, large"):
        executor.run("huge", np.zeros((1, 1, 2, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 \(B, 1, 2, 2\)"):
        executor.run("small", np.zeros((1, 1, 3, 3), dtype=np.uint8))
    with pytest.raises(ProfileError, match="allowed 1 to 4"):
        executor.run("small", np.zeros((5, 1, 2, 2), dtype=np.uint8))


def test_it_says_that_it_is_a_fake(executor):
    assert executor.is_timed
