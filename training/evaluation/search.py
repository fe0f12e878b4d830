"""Search a trained supernet for its Pareto subnets.

1. Measure every uniform shape and a sample of others, spread over sizes: calibrated, on the
   validation samples.
2. Fit an accuracy predictor to them and let evolution find the predicted front.
3. Measure the most promising of that front too, and take the front of all that was measured.
4. Measure that front once on the test samples, which nothing was chosen on. Reported are those
   accuracies with their intervals; `compare` adds the hyper-volume with a bootstrap interval, and
   what a uniform shape beats.

A decoder's samples are windows of text, and its accuracy is its agreement with the largest; what
its blocks keep of their feed-forwards is searched block by block (Mix'n'Match, MatFormer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from slackfit.profile import LatencyProfile
from supernet import Arch, Checkpoint, ServedSubnet, cost
from supernet.subnets.cost import Cost, cost_of_alike_blocks
from training.data.samples import Dataset
from training.evaluation.agreement_judge import AgreementJudge
from training.evaluation.domination import Domination, dominated
from training.evaluation.evaluate import uniform_archs
from training.evaluation.evolution import Aim, EvolutionSettings, evolve, front, spread_over_cost
from training.evaluation.hypervolume import HyperVolume, hyper_volume
from training.evaluation.journal import SearchJournal
from training.evaluation.judge import Judge, SampleJudge
from training.evaluation.predictor import (
    MIN_MEASURED,
    AccuracyPredictor,
    LatencyPredictor,
    Quality,
)

_SEARCH = 7

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How much is measured, and within which limit; `limit` is in MACs, or in seconds.

    `num_samples` random subnets besides the uniform ones (only the ladder where `uniform` is false)
    and `also`, `num_final` of the predicted
    front (0: nothing is predicted). `windows` of text are read of each split where the supernet is
    a decoder.
    """

    also: tuple[Arch, ...] = ()
    uniform: bool = True

    num_samples: int = 48
    num_final: int = 16
    calibration_images: int = 512
    windows: int = 64
    population: int = 64
    generations: int = 20
    limit: float = float("inf")
    seed: int = 0


class FoundSubnet(NamedTuple):
    """A subnet of the front; accuracies are fractions, `cost` is in MACs or seconds."""

    arch: Arch
    size: Cost
    cost: float
    predicted: float | None
    validation: float
    test: float
    ci95: tuple[float, float]


class SearchResult(NamedTuple):
    """The measured front, and what all measured subnets scored on validation.

    `quality` is the predictor's, None where nothing was predicted.
    """

    subnets: tuple[FoundSubnet, ...]
    measured: dict[Arch, Aim]
    quality: Quality | None
    latency_error: float | None
    statistics: dict[str, dict[str, torch.Tensor]]


class Comparison(NamedTuple):
    """On the test images: volumes of the front found, of the ladder, and the difference.

    `dominated` are those found that a uniform shape beats at no higher cost.
    """

    found: HyperVolume
    ladder: HyperVolume
    gain: HyperVolume
    dominated: list[Domination]


class Search:
    """One search; `run` does it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Dataset,
        options: SearchOptions,
        *,
        profile: LatencyProfile | None = None,
        batch_size: int = 1,
        journal: SearchJournal | None = None,
        progress: Progress = lambda what, done, total: None,
    ):
        """`profile` makes latency at `batch_size` the cost instead of MACs.

        What a `journal` holds is not measured again.
        Raises ValueError when the profile is of another space or has too few subnets.
        """
        self._options = options
        self._definition = checkpoint.definition
        self._space = self._definition.space
        self._progress = progress
        known = journal or SearchJournal()
        is_decoder = self._definition.family.generates
        self._judge: Judge = (
            AgreementJudge(checkpoint, data, options.windows, known)
            if is_decoder
            else SampleJudge(checkpoint, data, options.calibration_images, known)
        )
        self._latency: LatencyPredictor | None = None
        if profile is not None:
            measured_s = _latencies(checkpoint, profile, batch_size)
            self._latency = LatencyPredictor(
                self._space, self._size, measured_s, of_iterations=is_decoder
            )

    @property
    def source(self) -> str:
        """On what accuracies are measured, in words."""
        return self._judge.source

    def run(self) -> SearchResult:
        """Measure, predict, search, measure again."""
        options, space = self._options, self._space
        rng = np.random.default_rng((options.seed, _SEARCH))
        if self._cost(space.smallest) > options.limit:
            raise ValueError(
                f"no subnet is within the limit: the smallest, {space.smallest.subnet_id}, costs "
                f"{self._cost(space.smallest):g}, allowed {options.limit:g}"
            )
        sample = [*options.also, *(uniform_archs(space) if options.uniform else space.ladder())]
        sample = [a for a in sample if self._cost(a) <= options.limit]
        sample = list(dict.fromkeys((*sample, *self._draw(rng))))
        accuracy = self._validate("measure", sample)
        predictor: AccuracyPredictor | None = None
        if options.num_final and len(accuracy) >= MIN_MEASURED:
            predictor = AccuracyPredictor(space, self._size, accuracy)
            settings = EvolutionSettings(options.population, options.generations, options.limit)
            predicted = evolve(space, sample, self._cost, predictor, settings, rng)
            unseen = [arch for arch in predicted if arch not in accuracy]
            finalists = spread_over_cost(unseen, self._cost, options.num_final)
            accuracy |= self._validate("measure the best", finalists)
        measured = {arch: Aim(self._cost(arch), a) for arch, a in accuracy.items()}
        best = front(measured)
        return SearchResult(
            subnets=self._found(best, predictor, accuracy),
            measured=measured,
            quality=predictor.quality if predictor else None,
            latency_error=self._latency.relative_error if self._latency else None,
            statistics={a.subnet_id: self._judge.statistics(a) for a in best},
        )

    def compare(self, result: SearchResult) -> Comparison:
        """Measure the uniform shapes and the ladder on the test images too, and compare."""
        limit, found = self._options.limit, [s.arch for s in result.subnets]
        uniforms = [a for a in uniform_archs(self._space) if self._cost(a) <= limit]
        correct: dict[Arch, np.ndarray] = {}
        for done, arch in enumerate(dict.fromkeys((*found, *uniforms)), start=1):
            correct[arch] = self._judge.scores(arch, "test")
            self._progress("compare", done, len({*found, *uniforms}))
        aims = {a: Aim(self._cost(a), float(hits.mean())) for a, hits in correct.items()}
        ladder = [a for a in self._space.ladder() if a in aims]
        volumes = [
            hyper_volume(
                np.array([aims[a].cost for a in archs]),
                np.stack([correct[a] for a in archs]),
                self._ceiling(),
            )
            for archs in (found, ladder)
        ]
        beaten = dominated({a: aims[a] for a in found}, {a: aims[a] for a in uniforms}, correct)
        return Comparison(volumes[0], volumes[1], volumes[0].minus(volumes[1]), beaten)

    def _draw(self, rng: np.random.Generator) -> list[Arch]:
        """Tilted draws, so that all sizes are about as frequent, within the limit."""
        drawn: dict[Arch, None] = {}
        for _ in range(20 * self._options.num_samples):
            arch = self._space.sample(rng, tilt=rng.random())
            if self._cost(arch) <= self._options.limit:
                drawn[arch] = None
            if len(drawn) == self._options.num_samples:
                break
        return list(drawn)

    def _validate(self, what: str, archs: Sequence[Arch]) -> dict[Arch, float]:
        accuracy: dict[Arch, float] = {}
        for done, arch in enumerate(archs, start=1):
            accuracy[arch] = float(self._judge.scores(arch, "validation").mean())
            self._progress(what, done, len(archs))
        return accuracy

    def _found(
        self,
        archs: Sequence[Arch],
        predictor: AccuracyPredictor | None,
        accuracy: Mapping[Arch, float],
    ) -> tuple[FoundSubnet, ...]:
        predicted = predictor(archs) if predictor else None
        found: list[FoundSubnet] = []
        for i, arch in enumerate(archs):
            scores = self._judge.scores(arch, "test")
            found.append(
                FoundSubnet(
                    arch,
                    self._size(arch),
                    self._cost(arch),
                    None if predicted is None else float(predicted[i]),
                    accuracy[arch],
                    float(scores.mean()),
                    self._judge.interval(scores),
                )
            )
            self._progress("test", i + 1, len(archs))
        return tuple(found)

    def _ceiling(self) -> float:
        """The cost up to which volume is counted: the limit, or the largest subnet's."""
        return min(self._options.limit, self._cost(self._space.largest))

    def _size(self, arch: Arch) -> Cost:
        is_decoder = self._definition.family.generates
        return (cost_of_alike_blocks if is_decoder else cost)(self._definition, arch)

    def _cost(self, arch: Arch) -> float:
        return self._latency(arch) if self._latency else float(self._size(arch).macs)


def _latencies(
    checkpoint: Checkpoint, profile: LatencyProfile, batch_size: int
) -> dict[Arch, float]:
    """Seconds of the float subnets of a profile; it may hold other precisions too."""
    unknown = sorted(set(profile.subnet_ids) - {form.subnet_id for form in checkpoint.forms})
    if unknown:
        raise ValueError(
            f"profile {profile.name!r} names subnets that {checkpoint.name!r} does not serve: "
            f"{', '.join(unknown)}; profile this checkpoint"
        )
    archs = {subnet.subnet_id: subnet.arch for subnet in checkpoint.subnets}
    return {archs[i]: profile.latency_s(i, batch_size) for i in profile.subnet_ids if i in archs}


def with_found(checkpoint: Checkpoint, result: SearchResult, source: str) -> Checkpoint:
    """The same supernet, serving what was found; accuracies are those on the test images."""
    return checkpoint.serving(
        tuple(
            ServedSubnet(arch=s.arch, accuracy=s.test, ci95=s.ci95, **s.size._asdict())
            for s in sorted(result.subnets, key=lambda s: s.size.macs)
        ),
        result.statistics,
        source,
    )


def to_json(result: SearchResult, comparison: Comparison, **header: Any) -> dict[str, Any]:
    """Plain data of a result; MACs and parameters are counts, accuracies fractions."""
    quality = result.quality
    return {
        **header,
        "predictor": quality and {"kendall_tau": quality.tau, "mean_error": quality.mean_error},
        "latency_error": result.latency_error,
        "hyper_volume": {
            "found": comparison.found.to_json(),
            "ladder": comparison.ladder.to_json(),
            "gain": comparison.gain.to_json(),
        },
        "dominated": [
            {"subnet_id": d.subnet.subnet_id, "by": d.by.subnet_id, "gain": d.gain, "ci95": d.ci95}
            for d in comparison.dominated
        ],
        "num_measured": len(result.measured),
        "subnets": [
            {
                "subnet_id": s.arch.subnet_id,
                "arch": s.arch.to_json(),
                "macs": s.size.macs,
                "params": s.size.params,
                "cost": s.cost,
                "accuracy": s.test,
                "ci95": list(s.ci95),
                "validation_accuracy": s.validation,
                "predicted_accuracy": s.predicted,
            }
            for s in result.subnets
        ],
    }
