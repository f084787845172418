"""dpcompile: a compiler for differentially private training in PyTorch."""

from dpcompile.certificate import Certificate
from dpcompile.clip.grouped import GroupWise, PerLayer
from dpcompile.clip.kinds import PSAC, Automatic, Flat, Global, Normalized
from dpcompile.cost.hardware import HARDWARE, Hardware
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
    "BudgetError",
    "CaptureError",
    "Certificate",
    "DPCompileError",
    "Flat",
    "Global",
    "GroupWise",
    "Hardware",
    "InvalidInput",
    "MixedExamplesError",
    "Normalized",
    "PerLayer",
    "Plan",
    "PrivateModule",
    "Step",
    "StrategyError",
    "UnsupportedOperation",
    "VerificationError",
    "dpcompile",
]
