"""Extraction: how good a copy becomes of a victim that is asked through each of four arms.

Arms: the victim by its name; a naive mixture of whatever random specifications get; the
fingerprinted corner of the open server; the same corner of the defended one. A student is trained
on the answers. Accuracy is against labels, fidelity is agreement with the victim, both on images
that nobody asked about. Budgets are prefixes of a permutation that the seed draws.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

ARMS = ("named", "naive", "fingerprinted", "defended")
_STEPS, _RATE, _DECAY = 300, 0.05, 1e-3
_HALF_WIDTHS = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t at 95 %, by count


class Answers(NamedTuple):
    """What an arm got: places of the images that were answered, and logits (N, classes)."""

    places: np.ndarray
    logits: np.ndarray


class Judged(NamedTuple):
    """What students are judged on: features, the victim's labels, the true ones if known."""

    features: np.ndarray
    victim: np.ndarray
    labels: np.ndarray | None


Student = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""Trains on features and soft targets, returns logits for other features; the last is a seed."""


def targets_of(logits: np.ndarray) -> np.ndarray:
    """Return soft targets: probabilities that were given as such, else the softmax of logits."""
    sums = logits.sum(axis=1)
    if (logits >= 0).all() and np.abs(sums - 1).max() < 0.1:
        return logits / np.maximum(sums, 1e-6)[:, None]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def frozen_body_student(
    features: np.ndarray, targets: np.ndarray, others: np.ndarray, seed: int
) -> np.ndarray:
    """Train a linear head on a frozen body's features; full batches of Adam, a cosine rate."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    mean, scale = features.mean(0), features.std(0) + 1e-6
    x = torch.from_numpy((features - mean) / scale)
    wanted = torch.from_numpy(targets.astype(np.float32))
    weight = (torch.randn(x.shape[1], wanted.shape[1], generator=generator) * 0.01).requires_grad_()
    bias = torch.zeros(wanted.shape[1], requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(x @ weight + bias, wanted).backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        return (torch.from_numpy((others - mean) / scale) @ weight + bias).numpy()


def has_toolbox() -> bool:
    """Whether adversarial-robustness-toolbox is installed (extra `audit`)."""
    return importlib.util.find_spec("art") is not None


def knockoff_student(
    features: np.ndarray, targets: np.ndarray, others: np.ndarray, seed: int
) -> np.ndarray:
    """Have the toolbox's Knockoff Nets (Orekondy et al., CVPR 2019) train the same head."""
    import torch

    attacks: Any = importlib.import_module("art.attacks.extraction")
    estimators: Any = importlib.import_module("art.estimators.classification")
    mean, scale = features.mean(0), features.std(0) + 1e-6
    x = ((features - mean) / scale).astype(np.float32)
    answers = {row.tobytes(): target for row, target in zip(x, targets, strict=True)}
    classes = targets.shape[1]
    victim = estimators.BlackBoxClassifier(
        lambda rows: np.stack([answers[row.astype(np.float32).tobytes()] for row in rows]),
        input_shape=x.shape[1:],
        nb_classes=classes,
    )
    head = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(head.weight)  # convex: no need for a draw
    thief = estimators.PyTorchClassifier(
        head,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(head.parameters(), lr=_RATE / 5, weight_decay=_DECAY),
        input_shape=x.shape[1:],
        nb_classes=classes,
        device_type="cpu",
    )
    attack = attacks.KnockoffNets(
        victim,
        batch_size_fit=min(256, len(x)),
        batch_size_query=256,
        nb_epochs=40,
        nb_stolen=len(x),
        sampling_strategy="random",
        use_probability=True,
        verbose=False,
    )
    with _seeded(seed):
        copied = attack.extract(x, thieved_classifier=thief)
        return copied.predict(((others - mean) / scale).astype(np.float32))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the toolbox draws from, and put it back."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def score(
    student: Student, body: np.ndarray, answers: Answers, judged: Judged, budget: int, seed: int
) -> dict[str, float | None]:
    """Train one student on `budget` answers; return its accuracy and its fidelity."""
    order = np.random.default_rng(seed).permutation(len(answers.places))[:budget]
    logits = student(
        body[answers.places[order]], targets_of(answers.logits[order]), judged.features, seed
    )
    labels = logits.argmax(axis=1)
    right = None if judged.labels is None else float((labels == judged.labels).mean())
    return {"accuracy": right, "fidelity": float((labels == judged.victim).mean())}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half-width of the 95 % interval over seeds, by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    factor = _HALF_WIDTHS.get(len(values), 2.0)
    return mean, float(factor * np.std(values, ddof=1) / np.sqrt(len(values)))


def table_row(
    arm: str, student: str, budget: int, scores: Sequence[Mapping[str, float | None]]
) -> dict[str, Any]:
    """Return one row of the table: means over seeds with their intervals."""
    row: dict[str, Any] = {"arm": arm, "student": student, "budget": budget, "seeds": len(scores)}
    for figure in ("accuracy", "fidelity"):
        values = [value for one in scores if (value := one[figure]) is not None]
        mean, half = interval(values) if values else (None, None)
        row[figure] = mean
        row[f"{figure}_ci95"] = None if half is None or np.isnan(half) else half
    return row
