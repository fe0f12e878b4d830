"""What an audit concludes from what it saw: timing, price, copies, membership, checklist, page."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serve.audit.agreement import agreement_matrix
from serve.audit.audit_images import distinct, find_images
from serve.audit.checklist import Evidence, checklist
from serve.audit.copying.bodies import find_body
from serve.audit.copying.copies import copy_needs
from serve.audit.copying.extraction import (
    Answers,
    Judged,
    frozen_body_student,
    has_toolbox,
    interval,
    knockoff_student,
    score,
    table_row,
    targets_of,
)
from serve.audit.honest import HonestEnd, HonestQuery, honest_trace, price
from serve.audit.membership import membership
from serve.audit.page import audit_page
from serve.audit.prober import Probe, Seen
from serve.audit.timing import classified, summary

# --- timing --------------------------------------------------------------------------------------


def seen_of(rng: np.random.Generator, *, leaks: bool) -> list[Seen]:
    answers = []
    for number in rng.integers(0, 5, 150):
        took_s = 0.01 * (number + 1) if leaks else 0.06
        answers.append(Seen(np.zeros(2), took_s + rng.exponential(5e-4), f"net{number}"))
    return answers


def test_a_response_time_that_tells_is_found_and_one_on_a_grid_is_not(rng):
    leaking, padded = (seen_of(rng, leaks=leaks) for leaks in (True, False))
    found = summary(leaking, leaking, sees_told=False, seed=0)
    assert found["accuracy"] >= 0.8
    found = classified(padded, sees_told=False, seed=0)
    assert found["accuracy"] <= found["chance"] + 0.05
    assert found["chance"] == pytest.approx(0.2, abs=0.06)


# --- price ---------------------------------------------------------------------------------------


def test_the_price_counts_misses_floors_and_accuracy():
    trace = [HonestQuery(0.0, Probe(floor, 50.0)) for floor in (0.0, 0.8, 0.8, 0.0)]
    before = [HonestEnd(True, 0.9)] * 4
    after = [
        HonestEnd(True, 0.88), HonestEnd(True, 0.85), HonestEnd(True, 0.79), HonestEnd(False, 0.0),
    ]  # fmt: skip
    cost = price(trace, before, after)
    assert cost["goodput"] == 0.75
    assert cost["additional_misses"] == 1
    assert cost["floor_violations"] == 1
    assert cost["served_accuracy_lost"] == pytest.approx(0.9 - 0.84)
    free = price(trace, before, before)
    assert (free["goodput"], free["additional_misses"], free["floor_violations"]) == (1.0, 0, 0)


def test_the_trace_has_the_rate_and_is_the_same_for_both_servers():
    trace = honest_trace(50.0, 20.0, (0.0, 0.8), (30.0, 60.0), 3)
    assert trace == honest_trace(50.0, 20.0, (0.0, 0.8), (30.0, 60.0), 3)
    assert len(trace) == 1000
    assert trace[-1].at_s == pytest.approx(20.0, rel=0.15)
    assert {query.asked.min_accuracy for query in trace} == {0.0, 0.8}


# --- copies --------------------------------------------------------------------------------------


class Blobs:
    """Features of three classes, and a victim that is right."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.labels = rng.integers(0, 3, 600)
        centres = rng.normal(size=(3, 8)) * 2
        self.features = (centres[self.labels] + rng.normal(size=(600, 8))).astype(np.float32)
        self.logits = 6 * np.eye(3, dtype=np.float32)[self.labels]


STUDENTS = [
    frozen_body_student,
    pytest.param(
        knockoff_student,
        marks=[
            pytest.mark.skipif(not has_toolbox(), reason="needs the extra `audit`"),
            pytest.mark.filterwarnings("ignore"),
        ],
    ),
]


@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_copies_from_answers_and_not_from_noise(rng, student):
    blobs = Blobs(rng)
    body, judged = (
        blobs.features[:300],
        Judged(blobs.features[300:], blobs.labels[300:], blobs.labels[300:]),
    )
    answers = Answers(np.arange(300), blobs.logits[:300])
    copied = score(student, body, answers, judged, 200, 0)
    assert copied["fidelity"] > 0.9
    assert copied["accuracy"] == copied["fidelity"]
    noise = Answers(np.arange(300), blobs.logits[rng.permutation(600)[:300]])
    assert score(student, body, noise, judged, 200, 0)["fidelity"] < 0.75


@pytest.mark.slow
def test_a_student_from_scratch_copies(rng):
    from serve.audit.copying.mixmatch import mixmatch_student

    labels = rng.integers(0, 2, 160)
    images = rng.integers(0, 60, (160, 3, 8, 8), dtype=np.uint8)
    images[labels == 1, 0] += 150
    targets = np.eye(2)[labels]
    logits = mixmatch_student(images[:40], targets[:40], images[40:100], images[100:], 0, steps=60)
    assert (logits.argmax(axis=1) == labels[100:]).mean() > 0.9


def test_targets_are_read_from_logits_and_from_probabilities():
    assert targets_of(np.array([[0.0, 0.0]])) == pytest.approx(np.array([[0.5, 0.5]]))
    assert targets_of(np.array([[0.25, 0.76]])) == pytest.approx(np.array([[0.2475, 0.7525]]), 1e-3)
    assert targets_of(np.array([[10.0, 0.0]]))[0, 0] > 0.99


def test_rows_have_intervals_over_seeds():
    scores = [{"accuracy": None, "fidelity": value} for value in (0.90, 0.92, 0.94)]
    row = table_row("named", "frozen_body", 250, scores)
    assert row["fidelity"] == pytest.approx(0.92)
    assert row["fidelity_ci95"] == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert row["accuracy"] is None
    assert table_row("named", "frozen_body", 250, scores[:1])["fidelity_ci95"] is None
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.0)


def test_what_a_copy_needs_is_the_least_budget_near_the_best():
    rows = [
        {"arm": "named", "budget": 4000, "fidelity": 0.90},
        {"arm": "defended", "budget": 1000, "fidelity": 0.895},
        {"arm": "naive", "budget": 250, "fidelity": 0.85},
    ]
    assert copy_needs(rows) == 1000
    assert copy_needs(rows[1:]) is None


@pytest.mark.slow
def test_a_body_without_weights_of_others_tells_images_apart(rng, monkeypatch):
    monkeypatch.delenv("SUPERNET_DATA_DIR", raising=False)
    images = rng.integers(0, 60, (240, 3, 16, 16), dtype=np.uint8)
    labels = rng.integers(0, 2, 240)
    images[labels == 1, :, ::2] += 120  # stripes
    body = find_body(images[:100], 0)
    assert "k-means" in body.name
    features = body.features(images)
    answers = Answers(np.arange(100), 5 * np.eye(2, dtype=np.float32)[labels[:100]])
    judged = Judged(features[100:], labels[100:], None)
    found = score(frozen_body_student, features[:100], answers, judged, 100, 0)
    assert found["fidelity"] > 0.95
    assert found["accuracy"] is None


# --- membership ----------------------------------------------------------------------------------


def test_members_of_an_overfit_model_are_told_and_of_a_sound_one_are_not(rng):
    def logits(sureness: float) -> np.ndarray:
        made = rng.normal(size=(400, 10))
        made[:, 0] += sureness
        return made

    overfit = membership(logits(9.0), logits(2.0), 0)
    assert overfit["advantage"] > 0.6
    assert overfit["auc"] > 0.9
    sound = membership(logits(4.0), logits(4.0), 0)
    assert abs(sound["advantage"]) < 0.15
    assert sound["auc"] == pytest.approx(0.5, abs=0.06)


def test_the_agreement_of_labels_is_symmetric_and_one_with_itself():
    matrix = agreement_matrix(np.array([[1, 2, 3, 4], [1, 2, 0, 0]]))
    assert matrix.tolist() == [[1.0, 0.5], [0.5, 1.0]]


# --- images --------------------------------------------------------------------------------------


def test_images_are_a_folders_or_crops_of_photographs(tmp_path, rng, monkeypatch):
    monkeypatch.delenv("SUPERNET_DATA_DIR", raising=False)
    for name, count in (("test", 30), ("train", 20)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "images.npy", rng.integers(0, 256, (count, 3, 8, 8), np.uint8))
        np.save(tmp_path / name / "labels.npy", rng.integers(0, 9, count))
    found = find_images(tmp_path, (3, 8, 8), 0)
    assert found.images.shape == (30, 3, 8, 8)
    assert found.members is not None
    assert len(found.members) == 20
    first, rest = found.split(10)
    assert (len(first.images), len(rest.images)) == (10, 20)
    with pytest.raises(ValueError, match=r"images are \(3, 8, 8\), the model takes \(3, 32, 32\)"):
        find_images(tmp_path, (3, 32, 32), 0)
    crops = find_images(None, (3, 16, 16), 0)
    assert crops.labels is None
    assert crops.members is None
    assert "photographs" in crops.source


def test_more_images_than_there_are_differ(rng):
    images = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    many = distinct(images, 90, 0)
    assert many.shape == (90, 3, 8, 8)
    assert len({image.tobytes() for image in many}) >= 85
    assert distinct(images, 5, 0).shape[0] == 5


# --- the checklist -------------------------------------------------------------------------------

GOOD = Evidence(
    refused_after=200,
    tried=260,
    alerts=("specification_scan", "repetition", "perturbed_repetition"),
    alert_fields=("principal", "pattern", "seen"),
    answers_name_subnets=False,
    output_is_reduced=True,
    has_watermark=True,
    copy_needs=1000,
)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("C11.5.1", {"refused_after": 0}),
        ("C11.5.1", {"refused_after": 2000}),
        ("C11.5.2", {"alerts": ()}),
        ("C11.5.2", {"alert_fields": ("pattern",)}),
        ("C11.5.3", {"alerts": ("repetition",)}),
        ("C11.5.4", {"has_watermark": False}),
        ("outputs", {"output_is_reduced": False}),
        ("identity", {"answers_name_subnets": True}),
    ],
)
def test_each_line_passes_on_what_was_seen_and_fails_without(line, bad):
    def passed(evidence: Evidence) -> object:
        (row,) = [row for row in checklist(evidence) if row["line"] == line]
        assert row["evidence"]
        return row["passed"]

    assert passed(GOOD) is True
    assert passed(GOOD._replace(**bad)) is False


def test_what_was_not_tried_neither_passes_nor_fails():
    rows = checklist(Evidence())
    assert len({row["line"] for row in rows}) == len(rows) == 6
    assert {row["passed"] for row in rows} == {None}


# --- the page ------------------------------------------------------------------------------------


def test_the_page_tells_both_sides_and_escapes_what_it_is_given():
    side = {
        "fingerprint": {"queries_one": 14, "queries_all": 222, "pinned": 14},
        "share": {"naive": 1.0, "adaptive": 1.0, "repetition_gain": 0.0},
        "timing": {"accuracy": 0.93, "chance": 0.07},
        "price": {"goodput": 1.0, "served_accuracy_lost": 0.0},
        "extraction": [
            {
                "student": "frozen_body", "arm": "named", "budget": 250, "accuracy": 0.85,
                "accuracy_ci95": 0.01, "fidelity": 0.88, "fidelity_ci95": None,
            }
        ],
        "checklist": checklist(GOOD),
    }  # fmt: skip
    curve = [
        {"mechanism": name, "epsilon": epsilon, "largest_share": 0.2, "accuracy_lost": 0.01}
        for name in ("permute_and_flip", "laplace")
        for epsilon in (0.1, 1.0)
    ]
    page = audit_page(
        {"undefended": side, "defended": None, "epsilon_curve": curve, "command": "<script>"}
    )
    assert "<script>" not in page
    assert "85.00 % ± 1.00" in page
    assert page.count("<polyline") == 4
    assert "What it does not protect against" in page
    assert "defended</th>" in page
