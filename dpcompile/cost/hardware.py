"""Machines as rows of numbers; a measured machine is another row, never a special case.

peak_flops: dense FLOP/s by dtype. bandwidth: bytes/s. fresh_bandwidth: bytes/s for memory touched for the first time
(page faults on a CPU). launch: seconds to start one operation. efficiency: fraction of the peak that each form of
matrix work reaches. cache, cache_bandwidth: bytes of work that stay in the last cache, and the rate there; 0 where the
table does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hardware:
    """One machine."""

    name: str
    peak_flops: dict[str, float]
    bandwidth: float
    fresh_bandwidth: float
    memory: float
    launch: float
    source: str
    efficiency: dict[str, float] = field(default_factory=dict)
    cache: float = 0.0
    cache_bandwidth: float = 1.0

    def flops(self, dtype: str) -> float:
        """Peak rate for a dtype; float32's where the table has no row."""
        return self.peak_flops.get(dtype, self.peak_flops["float32"])


GPU_EFFICIENCY = {
    "matmul": 0.7,
    "batched": 0.5,
    "gram": 0.4,
    "unfolded": 0.4,
    "grouped convolution": 0.05,
    "convolution weight gradient": 0.4,
}
CPU_EFFICIENCY = {
    "matmul": 0.95,
    "batched": 0.9,
    "gram": 0.75,
    "unfolded": 0.6,
    "grouped convolution": 0.15,
    "convolution weight gradient": 0.85,
}

HARDWARE = {
    row.name: row
    for row in (
        # Two cores of a server CPU with AVX-512, measured with float32 matrix products of size 1024 and a copy of 256 MB.
        Hardware("cpu", {"float32": 3.3e11, "float64": 1.6e11, "bfloat16": 3.3e11}, 1.6e10, 4.0e9, 2.4e10, 6e-6,
                 "measured on two cores of a 2.7 GHz AVX-512 server CPU", CPU_EFFICIENCY, 3.2e7, 5e10),
        # https://www.nvidia.com/en-us/data-center/h200/ (dense rates: half of the sparse ones printed there)
        Hardware("h200", {"float32": 6.7e13, "tf32": 4.94e14, "bfloat16": 9.89e14, "float16": 9.89e14, "float64": 6.7e13},
                 4.8e12, 4.8e12, 1.41e11, 4e-6, "NVIDIA H200 datasheet", GPU_EFFICIENCY),
        # https://www.nvidia.com/en-us/data-center/h100/
        Hardware("h100", {"float32": 6.7e13, "tf32": 4.94e14, "bfloat16": 9.89e14, "float16": 9.89e14, "float64": 6.7e13},
                 3.35e12, 3.35e12, 8e10, 4e-6, "NVIDIA H100 SXM datasheet", GPU_EFFICIENCY),
        # https://www.nvidia.com/en-us/data-center/a100/
        Hardware("a100-80", {"float32": 1.95e13, "tf32": 1.56e14, "bfloat16": 3.12e14, "float16": 3.12e14, "float64": 1.95e13},
                 2.039e12, 2.039e12, 8e10, 5e-6, "NVIDIA A100 80GB datasheet", GPU_EFFICIENCY),
    )
}  # fmt: skip
