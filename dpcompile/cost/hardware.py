"""Machines as rows of numbers; a measured machine is another row, never a special case.

peak_flops        dense FLOP/s by dtype; "tf32" is float32 where torch may use the tensor cores for it
bandwidth         bytes/s of the main memory
fresh_bandwidth   bytes/s of memory that is touched for the first time (page faults on a CPU; infinite with a caching
                  allocator)
memory            bytes
launch            seconds to start one operation from Python
efficiency        share of the peak that each form of matrix work reaches when it is large
half_rate         size of a matrix product at which it runs at half of that
units             processors that need a tile of work each (multiprocessors of a GPU)
splits_sums       whether the libraries of the device split a long sum inside a matrix product over its processors
cache             bytes of work that stay in the last cache, and the rate there; 0 where the table does not know
curves            measured corrections by form; empty for rows of the table
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dpcompile.cost.curve import Curve
from dpcompile.ir.errors import InvalidInput


@dataclass(frozen=True)
class Hardware:
    """One machine."""

    name: str
    peak_flops: Mapping[str, float]
    bandwidth: float
    memory: float
    launch: float
    source: str
    efficiency: Mapping[str, float]
    fresh_bandwidth: float = math.inf
    half_rate: float = 0.0
    units: float = 0.0
    splits_sums: bool = True
    cache: float = 0.0
    cache_bandwidth: float = 1.0
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def flops(self, dtype: str) -> float:
        """Peak rate for a dtype; float32's where the table has no row."""
        return self.peak_flops.get(dtype, self.peak_flops["float32"])

    @property
    def is_measured(self) -> bool:
        """Whether the row comes from `python -m dpcompile calibrate`."""
        return bool(self.curves)


GPU_EFFICIENCY = {
    "contract": 0.75,
    "materialize": 0.5,
    "fused": 0.4,
    "gram": 0.4,
    "unfolded gram": 0.4,
    "unfolded materialize": 0.4,
    "unfolded fused": 0.35,
    "unfolded contract": 0.5,
    "grouped convolution": 0.05,
    "grouped convolution, one more dimension": 0.05,
    "depthwise convolution": 0.02,
    "convolution weight gradient": 0.4,
    "weighted sum": 1.0,
    "other": 0.6,
}
CPU_EFFICIENCY = {
    "contract": 0.95,
    "materialize": 0.9,
    "fused": 0.9,
    "gram": 0.75,
    "unfolded gram": 0.75,
    "unfolded materialize": 0.6,
    "unfolded fused": 0.6,
    "unfolded contract": 0.95,
    "grouped convolution": 0.15,
    "grouped convolution, one more dimension": 0.2,
    "depthwise convolution": 0.15,
    "convolution weight gradient": 0.85,
    "weighted sum": 1.0,
    "other": 0.9,
}


# cuDNN 7 and cuBLAS 9 on the P100: 8 x 40.1 GFLOP of VGG16's weight gradients as a grouped convolution took about 180 ms
# (Rochette et al. 2020, table 1: crb less no-DP, with the ordinary weight gradients and less four passes over all
# per-example gradients), and long sums ran on one processor.
P100_EFFICIENCY = {**GPU_EFFICIENCY, "grouped convolution": 0.19, "grouped convolution, one more dimension": 0.19}


def gpu(name: str, memory: float, bandwidth: float, units: int, launch: float, source: str, **peaks: float) -> Hardware:
    """A row for a GPU: TFLOP/s by dtype."""
    rates = {dtype: peak * 1e12 for dtype, peak in peaks.items()}
    return Hardware(name, rates, bandwidth, memory, launch, source, GPU_EFFICIENCY, half_rate=32, units=units)


def of_its_time(row: Hardware, efficiency: Mapping[str, float]) -> Hardware:
    """A row with the libraries that its published measurements ran with."""
    return replace(row, efficiency=efficiency, splits_sums=False)


# Dense rates: half of those that the newer data sheets print for sparse operands.
ROWS = (
    Hardware("cpu", {"float32": 3.3e11, "float64": 1.6e11, "bfloat16": 3.3e11}, 1.6e10, 2.4e10, 2e-6,
             "measured on two cores of a 2.7 GHz server CPU with AVX-512: products of size 1024, a copy of 256 MB",
             CPU_EFFICIENCY, fresh_bandwidth=4e9, cache=3.2e7, cache_bandwidth=5e10),
    gpu("h200", 1.41e11, 4.8e12, 132, 4e-6, "https://www.nvidia.com/en-us/data-center/h200/ (SXM)",
        float64=67, float32=67, tf32=494, bfloat16=989, float16=989),
    gpu("h100", 8e10, 3.35e12, 132, 4e-6, "https://www.nvidia.com/en-us/data-center/h100/ (SXM)",
        float64=67, float32=67, tf32=494, bfloat16=989, float16=989),
    gpu("a100-80", 8e10, 2.039e12, 108, 5e-6, "https://www.nvidia.com/en-us/data-center/a100/ (80 GB SXM)",
        float64=19.5, float32=19.5, tf32=156, bfloat16=312, float16=312),
    gpu("a100-40", 4e10, 1.555e12, 108, 5e-6, "https://www.nvidia.com/en-us/data-center/a100/ (40 GB SXM)",
        float64=19.5, float32=19.5, tf32=156, bfloat16=312, float16=312),
    gpu("l4", 2.4e10, 3e11, 58, 5e-6, "https://www.nvidia.com/en-us/data-center/l4/; float64 is 1/64 of float32",
        float64=0.47, float32=30.3, tf32=60, bfloat16=121, float16=121),
    gpu("v100", 1.6e10, 9e11, 80, 6e-6, "https://www.nvidia.com/en-us/data-center/v100/ (SXM2); bfloat16 is emulated",
        float64=7.8, float32=15.7, bfloat16=15.7, float16=125),
    of_its_time(gpu("p100", 1.6e10, 7.32e11, 56, 8e-6, "https://www.nvidia.com/en-us/data-center/tesla-p100/ (PCIe, 16 GB)",
                    float64=4.7, float32=9.3, bfloat16=9.3, float16=18.7), P100_EFFICIENCY),
    gpu("rtx-4090", 2.4e10, 1.008e12, 128, 5e-6, "NVIDIA Ada GPU architecture, whitepaper, appendix A",
        float64=1.29, float32=82.6, tf32=82.6, bfloat16=165.2, float16=165.2),
)  # fmt: skip
HARDWARE = {row.name: row for row in ROWS}


def named(hardware: str | Hardware | None) -> Hardware | None:
    """A row of the table by name, or the row itself."""
    if isinstance(hardware, str):
        if hardware not in HARDWARE:
            raise InvalidInput(f"hardware {hardware!r} is not in the table; use one of {', '.join(HARDWARE)} or a Hardware row")
        return HARDWARE[hardware]
    if hardware is not None and not isinstance(hardware, Hardware):
        raise InvalidInput(f"hardware must be a name in the table or a Hardware row, got {hardware!r}")
    return hardware
