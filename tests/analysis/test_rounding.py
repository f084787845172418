"""How far two runs of a program may lie apart follows torch's settings, in whatever way they were made."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dpcompile.analysis.rounding import WHOLE, whole_tolerance
from dpcompile.kernels.gram import convolution_rounding

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_type_has_its_own_tolerance_where_nothing_is_rounded(dtype: torch.dtype) -> None:
    assert whole_tolerance([dtype], CPU) == WHOLE[dtype]


def test_operands_that_may_be_rounded_widen_it() -> None:
    program = """
import torch
from dpcompile.analysis.rounding import WHOLE, whole_tolerance
gpu, cpu, single = torch.device("cuda"), torch.device("cpu"), [torch.float32]
assert WHOLE[torch.float32] < whole_tolerance(single, gpu) < WHOLE[torch.bfloat16]
assert whole_tolerance([torch.float64], gpu) == WHOLE[torch.float64]
torch.backends.cudnn.conv.fp32_precision = "ieee"  # from here on torch refuses to say cudnn.allow_tf32
assert whole_tolerance(single, gpu) == WHOLE[torch.float32]
torch.backends.mkldnn.conv.fp32_precision = "bf16"
assert whole_tolerance(single, cpu) == WHOLE[torch.bfloat16] > whole_tolerance(single, gpu)
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # the settings are global and cannot all be taken back


def test_dropped_bits_are_off_by_a_whole_unit_in_the_last_place() -> None:
    assert convolution_rounding(GPU) == torch.finfo(torch.float32).eps * 2.0**13
