"""Ways to train a graph supernet that were tried, and the one that is used on each graph.

`supernet bench graphs --part settings` compares them on validation nodes (`settings.py`); test
nodes have no part in the choice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from training.graphs.node_trainer import NodeTraining
from training.graphs.teachers import TeacherKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How subnets are trained, shared and alone, and what kind of network teaches them."""

    training: NodeTraining
    teacher: TeacherKind = "gcnii"


_WEAK = NodeTraining(steps=600, weight_decay=5e-5, dropout=0.2)
_STRONG = replace(_WEAK, weight_decay=5e-4, dropout=0.5)
_BARE = replace(_WEAK, weight_decay=0.0, dropout=0.0)
_CONSTANT = 0.01  # the rate at the end is that at the start

RECIPES: dict[str, Recipe] = {
    "strong-constant": Recipe(training=replace(_STRONG, min_lr=_CONSTANT)),
    "weak-constant": Recipe(training=replace(_WEAK, min_lr=_CONSTANT)),
    "weak-constant-mlp": Recipe(training=replace(_WEAK, min_lr=_CONSTANT, mlp_weight=4.0)),
    "weak": Recipe(training=_WEAK),
    "weak-average": Recipe(training=replace(_WEAK, min_lr=_CONSTANT, ema_decay=0.98)),
    "weak-depths": Recipe(training=replace(_WEAK, each_depth=True)),
    "weak-long": Recipe(training=replace(_WEAK, steps=1200)),
    "bare": Recipe(training=_BARE),
    "strong": Recipe(training=_STRONG),
    "strong-largest": Recipe(training=_STRONG, teacher="largest"),
    "weak-largest": Recipe(training=_WEAK, teacher="largest"),
    "weak-largest-mlp": Recipe(training=replace(_WEAK, mlp_weight=4.0), teacher="largest"),
}
"""By name: decay and dropout (strong, weak, bare), then what else differs: the rate stays constant
instead of falling by a cosine, the MLP rung weighs four times, weights are averaged, drawn subnets
take turns through the depths, twice the steps, the largest subnet teaches instead of a GCNII."""

_GOOD_TEACHER = (
    "strong-constant",
    "weak-constant",
    "weak-constant-mlp",
    "weak",
    "weak-average",
    "weak-depths",
    "weak-long",
    "bare",
)
TRIED: dict[str, tuple[str, ...]] = {
    "cora": _GOOD_TEACHER,
    "citeseer": _GOOD_TEACHER,
    "heterophilous": (
        "strong-constant",
        "weak-constant",
        "strong",
        "strong-largest",
        "weak-largest",
        "weak-largest-mlp",
    ),
}
CHOSEN: dict[str, str] = {
    "cora": "weak-constant-mlp",
    "citeseer": "weak-constant-mlp",
    "heterophilous": "weak-largest-mlp",
}


def recipe_of(graph: str, steps: int | None = None) -> Recipe:
    """The recipe that a graph's supernet is trained by; `steps` shortens it, for tests."""
    recipe = RECIPES[CHOSEN[graph]]
    return recipe if steps is None else shortened(recipe, steps)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe in other steps."""
    return replace(recipe, training=replace(recipe.training, steps=steps))


def digest_of(recipe: Recipe) -> str:
    """Name a recipe by all that it says, so that what is kept of another is not taken for it."""
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]
