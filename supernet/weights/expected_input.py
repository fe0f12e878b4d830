"""The input that foreign weights expect, as their publishers say: mean, deviation, crop, resize."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any, cast

from supernet.definition import SupernetDefinition
from supernet.input import INTERPOLATIONS, InputSpec

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)


def input_of(definition: SupernetDefinition, supernet: str, origin: str = "") -> InputSpec:
    """The input that the published weights of a variant expect, named as by its `origin`.

    timm and torchvision say it with their weights (mean, deviation, crop, interpolation). Others do
    not: TensorFlow's networks and ViTs map pixels to [-1, 1], the rest use ImageNet's mean and
    deviation; BERT and decoders take token ids.
    """
    size = definition.space.largest.resolution
    if definition.family.generates:
        size = definition.config.max_positions  # type: ignore[attr-defined]
    if definition.family_name == "bert" or definition.family.generates:
        return InputSpec(channels=1, height=1, width=size, mean=(0.0,), std=(1.0,), kind="tokens")
    mean, std = _HALF if supernet.startswith(("tf_", "vit")) else _IMAGENET
    spec = InputSpec(channels=3, height=size, width=size, mean=mean, std=std)
    tell = {"timm": _of_timm, "torchvision": _of_torchvision}.get(origin)
    told = tell(supernet) if tell and find_spec(origin) else {}
    if told.get("interpolation") not in INTERPOLATIONS:
        told.pop("interpolation", None)  # such as timm's `random`
    return replace(spec, **told)


def _of_timm(name: str) -> dict[str, Any]:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        return {}
    return {
        "mean": tuple(config.mean),
        "std": tuple(config.std),
        "crop": float(config.crop_pct),
        "interpolation": config.interpolation,
    }


def _of_torchvision(name: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    try:
        preset = cast("Any", get_model_weights(name)).DEFAULT.transforms()
    except ValueError:  # a variant that torchvision does not have
        return {}
    return {
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "crop": min(1.0, preset.crop_size[0] / preset.resize_size[0]),
        "interpolation": str(preset.interpolation.value),
    }
