"""DepS training of supernets: delayed, ramped shrinking with in-place distillation."""

from training.config import ConfigError, TrainConfig, load_config
from training.run import train
from training.trainer.trainer import Trainer

__all__ = ["ConfigError", "TrainConfig", "Trainer", "load_config", "train"]
