"""A training run in one safetensors file: tensors beside a JSON text, no pickle.

Parameters, buffers, the optimizer's state, the ledger and the place in the epoch. The key of the draws and the state of the noise
are in it only where the run was seeded: whoever reads them could repeat the noise. Otherwise both start again from the operating
system's entropy, which changes nothing in what is accounted.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpcompile.ir.errors import InvalidInput
from dpcompile.training.loader import PrivateLoader
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.resume import (
    Target,
    check_continues,
    check_selection,
    check_target_kept,
    continue_run,
    go_on_selecting,
    run_state,
    selection_state,
)

FORMAT = "dpcompile training 3"
TENSOR = "tensor:"
TUPLE = "tuple"
KEYS = (str, int, float, bool)
"""Types of keys that JSON writes as values, which keep them."""


def save(
    path: str | os.PathLike[str], module: Any, optimizer: PrivateOptimizer, loader: PrivateLoader, extra: Any = None
) -> None:
    """Write a checkpoint between two logical steps, in one replacement of the file. extra: plain data of the user's loop."""
    if optimizer.session.steps:
        raise InvalidInput(
            "a checkpoint in the middle of a logical step: save behind optimizer.step(), once the step is complete"
        )
    tensors: dict[str, Tensor] = {}
    state = {
        "module": packed(module.state_dict(), "module", tensors),
        "optimizer": packed(optimizer.state_dict(), "optimizer", tensors),
        **run_state(optimizer, loader),
        "selection": packed(selection_state(optimizer), "selection", tensors),
        "seeded": packed(random_state(optimizer, loader), "seeded", tensors),
        "extra": packed(extra, "extra", tensors),
    }
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    separate = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(separate, temporary, {"format": FORMAT, "state": json.dumps(state)})
    temporary.replace(target)


def load(
    path: str | os.PathLike[str], module: Any, optimizer: PrivateOptimizer, loader: PrivateLoader, target: Target | None = None
) -> Any:
    """Continue from a checkpoint; returns its `extra`. Refuses, with nothing changed, what is not of this model and run."""
    state, tensors = read(path)
    module_state, extra = unpacked(state["module"], tensors), unpacked(state["extra"], tensors)
    check_same_model(module.state_dict(), module_state)
    seeded = unpacked(state["seeded"], tensors)
    selection = unpacked(state["selection"], tensors)
    check_same_seed(seeded, optimizer, loader)
    check_selection(selection, optimizer)
    check_continues(state, optimizer, loader)
    check_target_kept(state, optimizer, loader, target, seeded is not None)
    optimizer.load_state_dict(unpacked(state["optimizer"], tensors))
    module.load_state_dict(module_state)
    continue_run(state, optimizer, loader, seeded is not None)
    go_on_selecting(selection, optimizer)
    restore_random_state(seeded, optimizer, loader)
    return extra


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors of a file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{os.fspath(path)} cannot be read as a checkpoint: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InvalidInput(
            f"{os.fspath(path)} is not a training checkpoint of this version ({FORMAT}); it says {metadata.get('format')!r}"
        )
    return json.loads(metadata["state"]), tensors


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain data for JSON; tensors go to `tensors` under the name that stands in their place. Dicts become lists of pairs."""
    if isinstance(value, Tensor):
        own = f"{name}#{len(tensors)}"  # keys may have points of their own: the number alone keeps names apart
        tensors[own] = value
        return TENSOR + own
    if isinstance(value, dict):
        check_keys(value, name)
        return {"dict": [[key, packed(held, f"{name}.{key}", tensors)] for key, held in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = TUPLE if isinstance(value, tuple) else "list"
        return {kind: [packed(held, f"{name}.{place}", tensors) for place, held in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise InvalidInput(
        f"{name} is a {type(value).__name__}, which a checkpoint without pickle cannot hold; give plain data and tensors"
    )


def check_keys(held: dict[Any, Any], name: str) -> None:
    """Refuse keys that would not come back from JSON as they were."""
    for key in held:
        if type(key) not in KEYS:
            raise InvalidInput(
                f"{name} has the key {key!r}, a {type(key).__name__}, which would not come back as it is; use strings or numbers"
            )


def unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `packed` was given."""
    if isinstance(value, str):
        return tensors[value.removeprefix(TENSOR)]
    ((kind, held),) = value.items()
    if kind == "dict":
        return {key: unpacked(item, tensors) for key, item in held}
    if kind == "value":
        return held
    items = [unpacked(item, tensors) for item in held]
    return tuple(items) if kind == TUPLE else items


def random_state(optimizer: PrivateOptimizer, loader: PrivateLoader) -> Any:
    """All generators of a seeded run; None where draws and noise come from the operating system's entropy."""
    noise = optimizer.noise.state()
    if noise is None:
        return None
    name, keys, *rest = np.random.get_state()
    python = random.getstate()
    return {
        "key": str(loader.draws.key),
        "noise": noise,
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [python[0], list(python[1]), python[2]],
    }


def check_same_seed(seeded: Any, optimizer: PrivateOptimizer, loader: PrivateLoader) -> None:
    """A seeded run goes on as itself only, and a private one never becomes repeatable."""
    is_seeded = optimizer.noise.state() is not None
    if (seeded is not None) != is_seeded or (seeded is not None and seeded["key"] != str(loader.draws.key)):
        raise InvalidInput(
            "the checkpoint is of a run with another seed (or with none); make the engine with the seed that it was saved with"
        )


def restore_random_state(seeded: Any, optimizer: PrivateOptimizer, loader: PrivateLoader) -> None:
    """Put the generators of a seeded run where they stood."""
    if seeded is None:
        return
    optimizer.noise.set_state(seeded["noise"])
    torch.set_rng_state(seeded["torch"])
    name, keys, *rest = seeded["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = seeded["python"]
    random.setstate((version, tuple(numbers), gauss))


def check_same_model(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Refuse the state of another model, naming the first difference."""
    for name in [*own, *saved]:
        if name not in saved or name not in own:
            raise InvalidInput(
                f"the checkpoint is of another model: {name} is only in {'the module' if name in own else 'the checkpoint'}"
            )
        if own[name].shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} there and {tuple(own[name].shape)} here"
            raise InvalidInput(f"the checkpoint is of another model: {name} has shape {shapes}")
