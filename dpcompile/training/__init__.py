"""Private training: noise, accounting, Poisson sampling, and an engine with Opacus' interface."""

from dpcompile.training.accountant import Accountant
from dpcompile.training.adaptive import AdaptiveQuantile
from dpcompile.training.calibrate import noise_multiplier_for
from dpcompile.training.engine import PrivacyEngine, make_private, make_private_with_epsilon
from dpcompile.training.loader import BatchMemoryManager, PrivateLoader
from dpcompile.training.log import TrainingLog
from dpcompile.training.module import PrivateDropIn, PrivateLoss
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.records import mean_over_records

__all__ = [
    "Accountant",
    "AdaptiveQuantile",
    "BatchMemoryManager",
    "PrivacyEngine",
    "PrivateDropIn",
    "PrivateLoader",
    "PrivateLoss",
    "PrivateOptimizer",
    "TrainingLog",
    "make_private",
    "make_private_with_epsilon",
    "mean_over_records",
    "noise_multiplier_for",
]
