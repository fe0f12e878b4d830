"""`Setting`: what all parts of the serving benchmark share: the supernet, its profile, the SLO."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from serve.bench.rows import Row, Tell, row
from serve.bench.serving.load import Load
from serve.config import ServeConfig, ServeConfigError, parse_config
from slackfit.profile import LatencyProfile

DEMO_CHECKPOINT = Path("runs/demo/checkpoint")
SLO_FACTOR = 10.0
_SLO_STEP_S = 0.005
_BATCH_SIZES = (1, 2, 4, 8, 16)


class Setting(NamedTuple):
    """What all parts share."""

    checkpoint: Path
    profile_path: Path
    profile: LatencyProfile
    load: Load
    threads: int
    input_shape: tuple[int, int, int]

    def sized(self) -> dict[str, str]:
        """Return the ids of the smallest, the middle and the largest subnet by accuracy."""
        ids = sorted(self.profile.subnet_ids, key=self.profile.accuracy)
        return {"smallest": ids[0], "middle": ids[len(ids) // 2], "largest": ids[-1]}

    def config(self, **settings: Any) -> ServeConfig:
        """Return the settings of a server of ours."""
        return parse_config(
            {
                "checkpoint": str(self.checkpoint),
                "profile": str(self.profile_path),
                "threads": self.threads,
                "slo_ms": self.load.slo_s * 1e3,
                "port": 0,
                **settings,
            }
        )

    def timed_config(self, **settings: Any) -> ServeConfig:
        """Return the same with the labelled timed executor: sleeps, computes nothing."""
        return self.config(
            checkpoint=None,
            device="timed",
            input_shape=self.input_shape,
            model_name=self.load.model,
            **settings,
        )


def find_checkpoint(given: Path | None) -> Path:
    """Return the checkpoint to serve. Raises ServeConfigError when there is none."""
    folder = given or DEMO_CHECKPOINT
    if (folder / "supernet.json").is_file():
        return folder
    if given is not None:
        raise ServeConfigError(f"checkpoint {given}: no trained supernet there (supernet.json)")
    raise ServeConfigError(
        f"no checkpoint at {folder}: run `make demo` first, or give --checkpoint"
    )


def find_data(given: Path | None, checkpoint: Path) -> Path | None:
    """Return the payload folder: the one given, or the one that a demo leaves beside it."""
    beside = checkpoint.parent / "data"
    return given or (beside if (beside / "images.npy").is_file() else None)


def choose_slo_s(profile: LatencyProfile, largest: str | None = None) -> float:
    """Return the SLO: ten times the batch 1 of the largest (None: most accurate) subnet.

    Up to the next 5 ms.

    Then the largest fits alone but not in the batches that a burst asks for, so that accuracy and
    attainment are a choice.
    """
    largest = largest or max(profile.subnet_ids, key=profile.accuracy)
    steps = -(-SLO_FACTOR * profile.latency_s(largest, 1) // _SLO_STEP_S)
    return max(steps, 1) * _SLO_STEP_S


def measured(
    folder: Path,
    data: Path | None,
    profile_path: Path,
    *,
    threads: int,
    repeats: int = 20,
    tell: Tell,
) -> Setting:
    """Return the setting, with the profile at `profile_path` or, if none fits, a fresh one.

    A fresh one has `repeats` runs of each entry.
    """
    from subnetact import load_executor, measure_profile
    from subnetact.cache import SLICE_PACKINGS
    from supernet import load_checkpoint

    checkpoint = load_checkpoint(folder)
    profile = LatencyProfile.load(profile_path) if profile_path.exists() else None
    forms = {form.subnet_id for form in checkpoint.forms}
    fits = profile is not None and profile.packing not in SLICE_PACKINGS
    if (
        profile is None
        or not fits
        or (profile.checkpoint != checkpoint.fingerprint or set(profile.subnet_ids) != forms)
    ):
        tell("measuring the latency profile")
        executor = load_executor(checkpoint, threads=threads, max_batch_size=_BATCH_SIZES[-1])
        profile = measure_profile(executor, checkpoint, batch_sizes=_BATCH_SIZES, repeats=repeats)
        executor.close()
        profile_path.parent.mkdir(parents=True, exist_ok=True)
        profile.save(profile_path)
    load = Load(model=checkpoint.name or "supernet", slo_s=choose_slo_s(profile), data=data)
    return Setting(folder, profile_path, profile, load, threads, checkpoint.input.shape)


def slo_row(setting: Setting) -> Row:
    """Return the row that says which SLO was chosen, and why."""
    profile, slo_s = setting.profile, setting.load.slo_s
    size = profile.max_batch_size
    known = ", ".join(
        f"{name} {i} (accuracy {profile.accuracy(i):.4f}, batch 1 "
        f"{profile.latency_s(i, 1) * 1e3:.2f} ms, batch {size} "
        f"{profile.latency_s(i, size) * 1e3:.1f} ms)"
        for name, i in setting.sized().items()
    )
    detail = (
        f"{SLO_FACTOR:g} times the largest subnet's batch 1, up to the next 5 ms; {known}; "
        f"{profile.device}, {setting.threads} device thread, {profile.packing}; samples from "
        f"{setting.load.data or 'noise'}"
    )
    return row("serving/slo", slo_s, "s", detail)
