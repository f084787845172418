"""Generated code: found again in inductor's cache by another process, and right for every batch size then too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import torch
from oracle import errors, expect
from torch._dynamo.utils import counters
from zoo_case import squares
from zoo_networks import mlp
from dpcompile import dpcompile

torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[1]))
model = mlp(5, 7, 3).double()
private = dpcompile(model, loss=squares, backend="inductor", max_grad_norm=0.5)
for size in (int(sys.argv[2]), 1, 3, 11):
    x = torch.randn(size, 5, dtype=torch.float64)
    found = errors(private(x), expect(model, squares, (x,), {}, 0, max_grad_norm=0.5))
    assert max(found.values()) < 1e-9, (size, found)
known = counters["inductor"]
print(known["fxgraph_cache_hit"], known["fxgraph_cache_miss"], known["fxgraph_cache_bypass"])
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_generated_code_is_found_again_and_right_for_other_weights_and_sizes(seed: int, tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (Path(__file__).parent.parent, Path(__file__).parent)))
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    lines = []
    for weights, first in ((0, 4), (seed, 7)):
        command = [sys.executable, "-c", PROGRAM, str(weights), str(first)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "cache key" not in done.stderr
        lines.append(done.stdout.split())
    assert lines == [["0", "1", "0"], ["1", "0", "0"]]
