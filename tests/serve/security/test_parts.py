"""The parts of the defence: specifications, draws, budget, patterns, audit log, settings."""

from __future__ import annotations

import json
import os
from collections import Counter

import numpy as np
import pytest

from serve.config import ServeConfigError, parse_config
from serve.security.audit_log import AuditLog
from serve.security.budget import EpsilonBudget
from serve.security.lattice import Lattice
from serve.security.patterns import Alert, PatternWatch
from serve.security.sticky import StickyDraw, digest_of, look_of, read_key
from serve.security_config import SecurityConfig

# --- specifications ------------------------------------------------------------------------------


def test_tiers_are_laid_out_over_the_front_and_floors_round_up(ten):
    lattice = Lattice(ten, SecurityConfig(grid_ms=40))
    assert [tier.name for tier in lattice.tiers] == ["bronze", "silver", "gold"]
    assert [tier.floor for tier in lattice.tiers] == pytest.approx([0.70, 0.74, 0.78])
    tier = lattice.tier_of(0.745)
    assert tier is not None
    assert tier.name == "gold"
    assert lattice.tier_of(0.80) is None


def test_a_cell_has_the_most_accurate_that_fit_and_none_dominates(ten):
    lattice = Lattice(ten, SecurityConfig(grid_ms=40))
    gold = lattice.tiers[-1]
    found = lattice.specification(gold, lattice.steps_of(0.2))
    assert found is not None
    assert found.steps == 5
    assert found.subnet_ids == tuple(f"secretnet{n}" for n in range(4, 10))
    counts = Counter(found.chosen((i + 0.5) / 10_000) for i in range(10_000))
    assert max(counts.values()) <= 2500
    assert found.chosen(0.0) == "secretnet4"
    assert found.chosen(1 - 2**-53) == "secretnet9"


def test_a_deadline_counts_as_the_multiple_below_but_for_microseconds(ten):
    lattice = Lattice(ten, SecurityConfig(grid_ms=40))
    steps = [lattice.steps_of(given_s) for given_s in (0.0799, 0.079995, 0.08, 0.119, 0.0, 0.078)]
    assert steps == [2, 2, 2, 2, 0, 1]


def test_no_cell_is_so_small_that_its_subnet_is_known(ten):
    lattice = Lattice(ten, SecurityConfig(grid_ms=1.0))
    for tier in lattice.tiers:
        shortest = lattice.shortest_steps(tier)
        assert lattice.specification(tier, shortest - 1) is None
        for steps in range(shortest, shortest + 40):
            found = lattice.specification(tier, steps)
            assert found is not None
            assert len(found.subnet_ids) >= 4
            assert all(ten.accuracy(i) >= tier.floor for i in found.subnet_ids)


def test_a_tier_with_too_few_subnets_is_refused_at_the_start(ten):
    with pytest.raises(ServeConfigError, match=r"tier gold .accuracy 0.85. has 2 subnets, allowed"):
        Lattice(ten, SecurityConfig(tiers={"gold": 0.85}))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epsilom": 1}, "unknown setting of security epsilom; known: tiers, grid_ms"),
        ({"tiers": {}}, "tiers is empty"),
        ({"outputs": {"platinum": "top1"}}, "outputs names tier platinum, the tiers are bronze"),
        ({"epsilon": 2.0, "budget_epsilon": 1.0}, r"budget_epsilon is 1, allowed epsilon \(2\)"),
        ({"grid_ms": 0}, "grid_ms"),
    ],
)
def test_wrong_settings_are_named(settings, text):
    data = {"device": "timed", "profile": "x", "security": settings}
    with pytest.raises(ServeConfigError, match=text):
        parse_config(data)


# --- draws ---------------------------------------------------------------------------------------


def draw_at(now_s: float, key: bytes = b"k" * 32) -> StickyDraw:
    return StickyDraw(key, 100.0, lambda: now_s)


def test_the_same_question_draws_the_same_until_the_window_ends():
    digest = digest_of(np.arange(12, dtype=np.uint8))
    other_digest = digest_of(np.arange(1, 13, dtype=np.uint8))
    first = draw_at(5.0).uniform("alice", b"gold" + digest)
    assert draw_at(99.0).uniform("alice", b"gold" + digest) == first
    others = {
        draw_at(101.0).uniform("alice", b"gold" + digest),
        draw_at(5.0).uniform("bob", b"gold" + digest),
        draw_at(5.0).uniform("alice", b"iron" + digest),
        draw_at(5.0, b"j" * 32).uniform("alice", b"gold" + digest),
        draw_at(5.0).uniform("alice", b"gold" + other_digest),
    }
    assert len(others) == 5
    assert first not in others


def test_draws_of_other_inputs_are_uniform():
    draw = draw_at(0.0)
    drawn = [draw.uniform("a", number.to_bytes(8, "big")) for number in range(20_000)]
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 4 * np.sqrt(2000 * 0.9)
    assert draw.window_left_s() == 100.0


def test_a_key_file_is_read_and_a_short_or_absent_one_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text("k" * 40 + "\n")
    assert read_key(str(path)) == read_key(str(path))
    assert read_key(None) != read_key(None)
    path.write_text("short")
    with pytest.raises(ServeConfigError, match="holds 5 bytes, allowed 32 or more"):
        read_key(str(path))
    with pytest.raises(ServeConfigError, match="can't be read"):
        read_key(str(tmp_path / "absent"))


def test_small_changes_look_the_same_and_other_images_do_not(rng):
    images = rng.integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    smooth = np.stack([np.full((3, 32, 32), value, np.uint8) for value in (48, 128, 208)])
    for image in smooth:
        noise = rng.integers(-2, 3, image.shape)
        changed = np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)
        assert look_of(changed) == look_of(image)
        assert digest_of(changed) != digest_of(image)
    assert len({look_of(image) for image in smooth}) == 3
    assert len({digest_of(image) for image in images}) == 200
    assert look_of(np.array([5, 6, 7])) != look_of(np.array([500, 600, 700]))


# --- budget --------------------------------------------------------------------------------------


def test_different_draws_compose_and_the_same_one_is_free():
    budget = EpsilonBudget(0.5, 1.0)
    assert budget.spend("a", 0, b"1")
    assert budget.spend("a", 0, b"1")
    assert budget.spent("a") == 0.5
    assert budget.spend("a", 0, b"2")
    assert not budget.spend("a", 0, b"3")
    assert budget.spend("a", 0, b"2")  # known: nothing new is learned
    assert budget.spend("b", 0, b"3")
    assert budget.spend("a", 1, b"3")  # the next window
    assert budget.spent("a") == 0.5


def test_without_a_limit_all_is_allowed_and_still_stated():
    budget = EpsilonBudget(1.0, None)
    assert all(budget.spend("a", 0, bytes([number])) for number in range(200))
    assert budget.spent("a") == 200.0
    assert budget.spent("nobody") == 0.0


# --- patterns ------------------------------------------------------------------------------------


class Watched:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.alerts: list[Alert] = []
        self.watch = PatternWatch(
            window_s=60.0,
            max_specifications=10,
            max_repeats=5,
            clock=lambda: self.now_s,
            tell=self.alerts.append,
        )

    @property
    def patterns(self) -> list[str]:
        return [alert.pattern for alert in self.alerts]


def test_a_bisection_is_told_once_and_a_user_with_few_specifications_is_not():
    watched = Watched()
    for step in range(40):
        watched.watch.specification("mallory", 0.5 + step * 1e-3, 0.1)
        watched.watch.specification("honest", (0.7, 0.8, 0.9)[step % 3], (0.1, 0.2)[step % 2])
    assert watched.alerts == [Alert("mallory", "specification_scan", 11, 10)]
    watched.now_s = 61.0
    for step in range(11):
        watched.watch.specification("mallory", 0.5 + step * 1e-3, 0.1)
    assert len(watched.alerts) == 2


def test_a_repeated_input_is_told_and_different_ones_are_not(rng):
    watched = Watched()
    images = rng.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    for image in images:
        watched.watch.input("honest", digest_of(image), look_of(image))
    assert watched.patterns == []
    for _ in range(6):
        watched.watch.input("mallory", digest_of(images[0]), look_of(images[0]))
    assert watched.alerts == [Alert("mallory", "repetition", 6, 5)]


def test_a_perturbed_input_is_told(rng):
    watched = Watched()
    image = np.full((3, 8, 8), 127, np.uint8)
    for _ in range(8):
        changed = image + rng.integers(0, 3, image.shape, dtype=np.uint8)
        watched.watch.input("mallory", digest_of(changed), look_of(changed))
    assert watched.patterns == ["perturbed_repetition"]


def test_what_needs_no_counting_is_told_at_once():
    watched = Watched()
    watched.watch.attempt("mallory", "pin_attempt")
    watched.watch.attempt("mallory", "pin_attempt")
    assert watched.alerts == [Alert("mallory", "pin_attempt", 1, 0)]


# --- audit log -----------------------------------------------------------------------------------


def test_the_audit_log_is_appended_to_and_others_cannot_read_it(tmp_path):
    path = tmp_path / "audit.jsonl"
    for round_number in range(2):
        log = AuditLog(str(path), lambda: 0.0)
        log.note({"round": round_number})
        log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"round": 0},
        {"round": 1},
    ]
    assert os.stat(path).st_mode & 0o077 == 0


def test_an_entry_is_written_within_a_second_of_the_next(tmp_path):
    now_s = [0.0]
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path), lambda: now_s[0])
    log.note({"n": 1})
    assert path.read_text() == ""
    now_s[0] = 1.5
    log.note({"n": 2})
    assert len(path.read_text().splitlines()) == 2
    log.close()


def test_a_full_disk_ends_the_log_and_not_serving(caplog):
    log = AuditLog("/dev/full", lambda: 0.0)
    log.note({"n": 1})
    log.close()
    log.note({"n": 2})
    assert "it stops here" in caplog.text
    with pytest.raises(ServeConfigError, match="audit_log /nowhere/x: can't be written"):
        AuditLog("/nowhere/x", lambda: 0.0)
