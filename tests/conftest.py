"""What every test shares: one thread, a fixed seed, hypothesis profiles and golden files."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # the sizes are tiny: threads only cost time, and change the order of additions

os.environ["DPCOMPILE_CACHE"] = tempfile.mkdtemp()  # prices are those of the table, whatever was calibrated on this machine

hypothesis.settings.register_profile("local", deadline=None)  # the first example of a test compiles
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites golden files."""
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Start every test from the same random state and with one thread, whatever ran before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return 0


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compare a text with the test's own file, `golden/<test file>.<test>.txt` beside the test file."""
    path = golden_path(request.node.path, request.node.name)
    command = f'pytest "{request.node.nodeid}" --update-golden'

    def check(text: str) -> None:
        actual = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(actual, encoding="ascii")
        assert path.exists(), f"{path} does not exist; write it with: {command}"
        expected = path.read_text(encoding="ascii")
        changes = difflib.unified_diff(expected.splitlines(), actual.splitlines(), "golden", "now", lineterm="")
        assert actual == expected, "\n".join([f"differs from {path}; accept with: {command}", *changes])

    return check


def golden_path(test_file: Path, test_name: str) -> Path:
    """The golden file of a test: parametrised ids are part of the name."""
    name = re.sub(r"[^\w.-]+", ".", test_name.removeprefix("test_")).strip(".")
    return test_file.parent / "golden" / f"{test_file.stem.removeprefix('test_')}.{name}.txt"
