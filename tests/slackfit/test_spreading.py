"""Where a client sends its next request: by outlooks, in turn among equals, away from the sick."""

from __future__ import annotations

from collections import Counter

import pytest

from slackfit.spreading import Outlook, Spreading

FAST = 1000.0  # queries/s: estimates that differ by less than 16 ms are equal


def told(finish_s: float, capacity_qps: float = FAST) -> Outlook:
    return Outlook(finish_s, capacity_qps)


def knowing(**outlooks: Outlook) -> Spreading:
    """A client that was told these, at time 0."""
    spreading = Spreading(outlooks)
    for _ in outlooks:
        name = spreading.choose(0.0)
        spreading.answered(name, 0.0, outlooks[name])
    return spreading


def test_without_a_word_the_fewest_open_requests_in_turn():
    spreading = Spreading("abc")
    assert [spreading.choose(0.0) for _ in range(6)] == list("abcabc")
    spreading.answered("b", 0.0)
    assert spreading.choose(0.0) == "b"


def test_the_least_forecast_is_chosen_until_what_was_sent_makes_up_for_it():
    spreading = knowing(a=told(0.2), b=told(0.0))
    sent = [spreading.choose(0.0) for _ in range(24)]
    # Each request stands for eight: 24 of them are 0.2 s at 1000 queries/s, but for half a batch.
    assert sent == ["b"] * 24
    assert spreading.choose(0.0) == "a"


def test_what_differs_by_less_than_a_batch_counts_as_equal_and_goes_in_turn():
    spreading = knowing(a=told(0.015), b=told(0.0), c=told(0.001))
    assert Counter(spreading.choose(0.0) for _ in range(6)) == Counter("aabbcc")


def test_a_forecast_gets_old():
    """What was to be done in 0.1 s is done after that."""
    spreading = knowing(a=told(0.1), b=told(0.0))
    assert spreading.choose(0.0) == "b"
    spreading.answered("b", 0.0, told(0.05))
    assert spreading.choose(0.1) == "a"


def test_a_slower_replica_gets_its_share():
    spreading = knowing(fast=told(0.0, 900.0), slow=told(0.0, 300.0))
    sent = Counter(spreading.choose(0.0) for _ in range(400))
    assert sent["fast"] / sent["slow"] == pytest.approx(3, rel=0.1)


def test_a_failed_replica_is_left_and_comes_back_on_trial():
    spreading = Spreading("ab")
    assert spreading.choose(0.0) == "a"
    spreading.failed("a", 0.0)
    assert [spreading.choose(0.05) for _ in range(3)] == ["b"] * 3
    assert spreading.choose(0.11) == "a"  # on trial, alone
    assert [spreading.choose(0.12) for _ in range(3)] == ["b"] * 3
    spreading.answered("a", 0.13)
    assert spreading.choose(0.13) == "a"


def test_a_trial_that_fails_doubles_the_rest_up_to_seconds():
    spreading, now_s, rests_s = Spreading("ab"), 0.0, []
    for _ in range(9):
        while spreading.choose(now_s) != "a":
            spreading.answered("b", now_s)
            now_s += 0.01
        spreading.failed("a", now_s)
        failed_s = now_s
        while spreading._known["a"].is_away(now_s):
            now_s += 0.01
        rests_s.append(now_s - failed_s)
    assert rests_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], abs=0.011)


def test_those_that_were_under_way_when_it_failed_count_once():
    spreading = Spreading("ab")
    sent = [spreading.choose(0.0) for _ in range(8)]
    for name in sent:
        if name == "a":
            spreading.failed("a", 0.0)
    assert spreading._known["a"].rest_s == pytest.approx(0.1)
    assert spreading._known["a"].num_open == 0


def test_with_nobody_sound_the_one_that_failed_first_is_asked():
    spreading = Spreading("ab")
    for name, at_s in (("a", 0.0), ("b", 0.01)):
        assert spreading.choose(at_s) == name
        spreading.failed(name, at_s)
    assert not spreading.has_sound(0.02)
    assert spreading.choose(0.02) == "a"


def test_a_spare_one_is_for_when_no_other_is_sound():
    spreading = Spreading("ab", spare=["door"])
    assert {spreading.choose(0.0) for _ in range(5)} == {"a", "b"}
    for name in "ab":
        spreading.failed(name, 0.0)
    assert spreading.choose(0.01) == "door"


def test_what_is_known_of_those_that_stay_is_kept():
    spreading = knowing(a=told(0.0), b=told(0.5))
    spreading.use(["b", "c"])
    assert spreading.names == ("b", "c")
    assert [spreading.choose(0.0) for _ in range(3)] == ["c"] * 3
    spreading.answered("a", 0.0)  # one that was under way: nobody minds
    spreading.forgotten("a")
