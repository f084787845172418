"""What the Trainer of transformers writes down: names that say what is not private, and the ledger in its checkpoints."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from dpcompile.ir.errors import InvalidInput
from dpcompile.training.checkpoint import packed, unpacked

MEASURED = ("loss", "train_loss")
"""Of the training data, without noise; so is the memory that the draws have needed."""
COUNTED = ("total_flos",)
"""Says how many examples were drawn, and nothing else."""


def renamed(logs: dict[str, Any]) -> dict[str, Any]:
    """The same values under names that say which of them are not private; without those that only count what was drawn."""
    return {own_name(name): value for name, value in logs.items() if name not in COUNTED}


def own_name(name: str) -> str:
    """A log's name."""
    return f"{name}_not_private" if name in MEASURED or name.startswith("train_mem_") else name


def write_ledger(path: Path, state: dict[str, Any]) -> None:
    """What `run_with_noise` says, as JSON."""
    noise, tensors = state["noise"], dict[str, torch.Tensor]()
    selection = packed(state["selection"], "selection", tensors)
    blob = base64.b64encode(to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})).decode("ascii")
    plain = {"noise": None if noise is None else noise.tolist(), "selection": selection, "tensors": blob}
    path.write_text(json.dumps({**state, **plain}), encoding="utf-8")


def read_ledger(path: Path) -> Any:
    """What `write_ledger` wrote; whether it is complete is for `check_run_with_noise` to say."""
    if not path.exists():
        raise InvalidInput(
            f"the checkpoint {path.parent} has no {path.name}, so that what its training has spent is unknown: it was saved by "
            "another trainer, or with save_only_model=True. To start anew from its weights, load them into the model"
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path} is damaged ({error}), so that what was spent is unknown; use another checkpoint") from error
    if isinstance(state, dict) and isinstance(state.get("noise"), list):
        state["noise"] = torch.tensor(state["noise"], dtype=torch.uint8)
    if isinstance(state, dict) and "tensors" in state:
        tensors = from_bytes(base64.b64decode(state.pop("tensors")))
        state["selection"] = unpacked(state["selection"], tensors)
    return state
