"""Calibrated machines on disk, in the user's cache folder, one file per device, versions and number of threads."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import platformdirs
import torch

from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.measure.document import as_dictionary, from_dictionary

FORMAT: Final = 4
"""Raised when a calibration measures other kernels: an older one would price the new ones by formula alone."""
VARIABLE: Final = "DPCOMPILE_CACHE"
"""Environment variable that names another folder."""


def folder() -> Path:
    """Where calibrations are kept."""
    return Path(os.environ.get(VARIABLE) or platformdirs.user_cache_dir("dpcompile"))


def identity(device: torch.device) -> dict[str, str]:
    """What measured times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    versions = {"torch": torch.__version__, "dpcompile": own_version(), "python": platform.python_version()}
    return {"device": name, "threads": str(torch.get_num_threads()), **versions}


def own_version() -> str:
    """This package's version; "unknown" where it runs from a folder that was never installed."""
    try:
        return version("dpcompile")
    except PackageNotFoundError:
        return "unknown"


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text(encoding="utf-8")) if path.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def digest(device: torch.device) -> str:
    """A short name for device, versions and number of threads."""
    return hashlib.sha256(json.dumps(identity(device), sort_keys=True).encode()).hexdigest()[:16]


def path_for(device: torch.device) -> Path:
    """The calibration's file of this device."""
    return folder() / f"calibration-{digest(device)}.json"


def nearest_row(device: torch.device) -> Hardware:
    """The table's row for a device that was not measured: the GPU whose name is contained in the device's own."""
    if device.type != "cuda":
        return HARDWARE["cpu"]
    name = torch.cuda.get_device_name(device).lower().replace(" ", "-")
    return next((row for key, row in HARDWARE.items() if key.split("-")[0] in name and key != "cpu"), HARDWARE["h200"])


def save(hardware: Hardware, spread: float, device: torch.device) -> Path:
    """Write a calibration."""
    document = {
        "format": FORMAT,
        "identity": identity(device),
        "spread": spread,
        "hardware": as_dictionary(hardware),
    }
    return written(path_for(device), document)


def written(path: Path, document: Any) -> Path:
    """Write JSON; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="ascii") as file:
        json.dump(document, file)
    Path(file.name).replace(path)
    return path


def load(device: torch.device) -> tuple[Hardware | None, str]:
    """The measured row for this device, and a note where there is a file that cannot be used."""
    path = path_for(device)
    if not path.exists():
        return None, ""
    try:
        document = json.loads(path.read_text(encoding="ascii"))
        if document["format"] != FORMAT or document["identity"] != identity(device):
            return None, f"the calibration in {path} is of another version; run python -m dpcompile calibrate again"
        return from_dictionary(document["hardware"]), ""
    except (ValueError, KeyError, TypeError, OSError) as error:
        return None, f"the calibration in {path} cannot be read ({type(error).__name__}); run python -m dpcompile calibrate again"
