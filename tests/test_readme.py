"""The README's quickstart runs, and what the README shows is what comes out; `--update-golden` writes it anew."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz import tally
from typer.testing import CliRunner

from benchmarks import families
from benchmarks.dropping import table as dropping
from benchmarks.experiments.table import summary
from benchmarks.region_map import markdown, points
from benchmarks.table import overview
from dpcompile import MixedExamplesError
from dpcompile.__main__ import app
from dpcompile.cost.hardware import HARDWARE

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "intel-r-xeon-r-processor-2-cores.json"
PEAKS = ROOT / "benchmarks" / "results" / "amd-epyc-2-cores-peaks.md"
COST = ROOT / "benchmarks" / "results" / "intel-r-xeon-r-processor-2-cores-cost.md"
EXPERIMENTS = sorted(
    p for name in ("rochette", "lee-kifer", "beltran") for p in (ROOT / "benchmarks/results").glob(f"{name}-*.json")
)
DROPPING = ROOT / "benchmarks" / "results" / "dropping-amd-epyc-2-cores.json"
FUZZ = ROOT / "benchmarks" / "results" / "fuzz.json"
PINNED = importlib.metadata.version("torch").split("+")[0] == "2.13.0"
REFUSED = """import torch
from torch import nn
from dpcompile import dpcompile

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        h = self.fc(x)
        return h - h.mean(0)

x, y = torch.randn(16, 64), torch.randint(0, 10, (16,))
dpcompile(Centred(), nn.CrossEntropyLoss())(x, y)
"""


def run(code: str, name: str) -> dict[str, Any]:
    """Run a program as if it stood in a file of this name."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    return names


def quickstart() -> dict[str, Any]:
    """What the first program of the README leaves behind."""
    found = re.search(r"## Quickstart\n\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return run(found[1], "quickstart.py")


def test_the_readmes_private_training_runs() -> None:
    found = re.search(r"## Private training\n\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    engine = run(found[1], "training.py")["engine"]
    assert 7.5 < engine.get_epsilon(1e-3) <= 8.0


def test_the_readmes_pruning_runs() -> None:
    found = re.search(r"### Pruning and gradient dropping\n.*?```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names = run(found[1], "pruning.py")
    rows = names["model"][0].weight.any(1)
    assert int(rows.sum()) == 128 and not names["step"].grads["0.weight"][~rows].any()


def outputs() -> dict[str, str]:
    """The blocks that the README marks with `<!-- output: NAME -->`."""
    private = quickstart()["private"]
    with pytest.raises(MixedExamplesError) as refusal:
        run(REFUSED, "centred.py")
    return {
        "report": fenced(str(private.report())),
        "graph": fenced(private.print_readable(print_output=False)),
        "refusal": fenced(f"MixedExamplesError: {refusal.value}"),
        "peaks": PEAKS.read_text(encoding="utf-8"),
        "cost": COST.read_text(encoding="utf-8"),
        "families": families.markdown(json.loads(families.RESULTS.read_text(encoding="ascii"))),
        "fuzz": tally.markdown(json.loads(FUZZ.read_text(encoding="ascii"))),
        "regions": markdown(points(HARDWARE["p100"])),
        "papers": summary([json.loads(path.read_text(encoding="ascii")) for path in EXPERIMENTS]),
        "dropping": dropping.summary(json.loads(DROPPING.read_text(encoding="ascii"))),
        "measured": overview(json.loads(RESULTS.read_text(encoding="ascii"))["workloads"]),
    }


def fenced(text: str) -> str:
    """Text as Markdown shows it unchanged."""
    return f"```text\n{text.rstrip()}\n```"


def filled(text: str, blocks: dict[str, str]) -> str:
    """The README with these blocks."""
    for name, block in blocks.items():
        new = f"<!-- output: {name} -->\n{block.rstrip()}\n<!-- end -->\n"
        old = re.search(rf"<!-- output: {name} -->\n.*?<!-- end -->\n", text, re.DOTALL)
        assert old is not None, name
        text = text[: old.start()] + new + text[old.end() :]
    return text


def test_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = quickstart()
    assert names["step"].norms.shape == (16,) and set(names["step"].grads) == set(dict(names["model"].named_parameters()))
    assert "sensitivity" in capsys.readouterr().out


@pytest.mark.skipif(not PINNED, reason="names of nodes differ from one torch to the next; the README shows the pinned one's")
def test_the_readme_shows_what_comes_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    before = README.read_text(encoding="utf-8")
    after = filled(before, outputs())
    if request.config.getoption("--update-golden"):
        README.write_text(after, encoding="utf-8")
    else:
        assert after == before, "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm=""))


def test_explain_shows_a_module_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "import torch\nfrom torch import nn\ndef make(size):\n    x, y = torch.randn(size, 5), torch.zeros(size).long()\n"
    (tmp_path / "mine.py").write_text(lines + "    return nn.Linear(5, 2), nn.CrossEntropyLoss(), (x, y)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(app, ["explain", "mine:make"])
    assert result.exit_code == 0, result.output
    assert "bti,bto->oi" in result.output and "dp.flat_factors(" in result.output
    other = CliRunner().invoke(
        app, ["explain", "mine:make", "--hardware", "h200", "--formula", "weight", "--memory-budget", "1 GB"]
    )
    assert other.exit_code == 0 and "strategies for h200" in other.output and "matrix FLOPs = " in other.output
    assert CliRunner().invoke(app, ["explain", "mine:make", "--hardware", "abacus"]).exit_code == 1


def test_explain_says_what_a_factory_must_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pair.py").write_text(
        "from torch import nn\ndef make(size):\n    return nn.Linear(5, 2), None\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(app, ["explain", "pair:make"])
    assert result.exit_code == 2 and "(model, loss, batch)" in result.output


MADE = "import torch\nfrom torch import nn\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(size):\n    return nn.Linear(5, '2'), None, ()\n", "raised TypeError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def make(size):\n    return nn.Linear(5, 2), lambda m, x: m(x).sum(1), (torch.ones(7, 5),)\n", "gives 7 examples"),
        ("def make(size):\n    return nn.Linear(5, 2), lambda m, x: m(x).cumsum(0).sum(1), (torch.ones(size, 5),)\n", "mixed"),
    ],
)
def test_explain_says_in_a_few_lines_what_is_wrong(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "wrong.py").write_text(MADE + body, encoding="utf-8")
    command = [sys.executable, "-m", "dpcompile", "explain", "wrong:make"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and message in " ".join(done.stderr.split())
    assert "site-packages" not in done.stderr
