"""dpcompile: a compiler for differentially private training in PyTorch."""

from dpcompile.certificate import Certificate
from dpcompile.clip.grouped import GroupWise, PerLayer
from dpcompile.clip.kinds import PSAC, Automatic, Flat, Global, Normalized
from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.criteria.choices import GradientDropping, PrePruning, Ramp
from dpcompile.criteria.units import Blocks
from dpcompile.ir.errors import (
    BudgetError,
    CaptureError,
    DPCompileError,
    InvalidInput,
    MixedExamplesError,
    StrategyError,
    UnsupportedOperation,
    VerificationError,
)
from dpcompile.module import PrivateModule, dpcompile
from dpcompile.plan.plan import Plan
from dpcompile.step import Step

__all__ = [
    "HARDWARE",
    "PSAC",
    "Automatic",
    "Blocks",
    "BudgetError",
    "CaptureError",
    "Certificate",
    "DPCompileError",
    "Flat",
    "Global",
    "GradientDropping",
    "GroupWise",
    "Hardware",
    "InvalidInput",
    "MixedExamplesError",
    "Normalized",
    "PerLayer",
    "Plan",
    "PrePruning",
    "PrivateModule",
    "Ramp",
    "Step",
    "StrategyError",
    "UnsupportedOperation",
    "VerificationError",
    "dpcompile",
]
