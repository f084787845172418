"""`python -m dpcompile calibrate`: measure, keep, and print what was found."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dpcompile.ir.errors import InvalidInput
from dpcompile.measure.cache import VARIABLE, cpu_name, folder, nearest_row, save
from dpcompile.measure.calibrate import Calibration
from dpcompile.measure.calibrate import calibrate as measure

BUSY = 0.1
"""Spread above which a machine counts as busy."""


def run_calibration(seconds: float, device: str) -> Calibration:
    """Measure the device, keep the result and print it; InvalidInput where there is no such device, or no place to keep it."""
    place = present(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_writable(folder())
    with tqdm(total=100, desc="calibrating", leave=False, bar_format="{l_bar}{bar}| {postfix}") as bar:

        def progress(name: str, share: float) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update(int(100 * share) - bar.n)

        found = measure(nearest_row(place), place, seconds, progress)
    path = save(found.hardware, found.spread, place)
    console = Console()
    console.print(table(found, place))
    for line in summary(found):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"kept in {path}", highlight=False, soft_wrap=True)
    return found


def present(name: str) -> torch.device:
    """A device that this torch can run on."""
    known = ["cpu", *([f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else [])]
    if (name != "cuda" and name not in known) or (name == "cuda" and len(known) == 1):
        raise InvalidInput(f"there is no device {name!r} here; use one of {', '.join(known)}")
    return torch.device(name)


def check_writable(place: Path) -> None:
    """Refuse before minutes are spent on what could not be kept."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"calibrations cannot be kept in {place} ({reason}); name another folder in {VARIABLE}") from error


def summary(found: Calibration) -> list[str]:
    """Rates, effort, and warnings where the machine was busy, at times or throughout."""
    row = found.hardware
    lines = [
        f"float32 {row.peak_flops['float32'] / 1e9:.0f} GFLOP/s, memory {row.bandwidth / 1e9:.1f} GB/s, "
        f"{row.launch * 1e6:.1f} us to start an operation",
        f"{found.measurements} measurements in {found.seconds:.0f} s; spread {found.spread:.1%} (half the distance of quartiles)",
    ]
    if found.spread > BUSY:
        lines.append("the machine was busy; calibrate again when it is not, or predictions will be off by as much")
    if not found.has_its_cores:
        lines.append(
            f"{found.threads} threads multiplied matrices only {found.speedup:.1f} times as fast as one: they shared their cores "
            "with each other or with other programs; calibrate again when they do not, or plans will be made for a slower machine"
        )
    return lines


def table(found: Calibration, place: torch.device) -> Table:
    """One row per kernel: how far measurements are from the formula."""
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    result = Table(title=f"measured over predicted by the formula, {name}")
    for column in ("kernel", "points", "lowest", "median", "highest"):
        result.add_column(column, justify="left" if column == "kernel" else "right")
    for form, curve in sorted(found.hardware.curves.items()):
        ratios = sorted(map(math.exp, curve.logarithms))
        shown = (ratios[0], ratios[len(ratios) // 2], ratios[-1])
        result.add_row(form, str(len(ratios)), *(f"{ratio:.2f}" for ratio in shown))
    return result
