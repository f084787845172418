"""dpcompile: a compiler for differentially private training in PyTorch."""

from dpcompile.certificate import Certificate
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
    "BudgetError",
    "CaptureError",
    "Certificate",
    "DPCompileError",
    "Hardware",
    "InvalidInput",
    "MixedExamplesError",
    "Plan",
    "PrivateModule",
    "Step",
    "StrategyError",
    "UnsupportedOperation",
    "VerificationError",
    "dpcompile",
]
