"""What a trace cannot carry: Python state that forward writes, hooks on parameters, compiled TorchScript.

A trace runs Python once. A number or a list that forward changes would stay what it was, a hook on a parameter would change
the sum and not each example's gradient; all are refused before anything is computed with them.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpcompile.ir.errors import CaptureError, refusal

Entries = list[tuple[Any, ...]]
Held = list[tuple[str, Any, Entries]]
Saved = Sequence[tuple[nn.Module, dict[str, Any]]]
NUMBERS = (bool, int, float, str)
OWN = frozenset(vars(nn.Module())) - {"training"}
LISTED_WEIGHTS = ("_flat_weights", "_flat_weight_refs")
"""Lists that a recurrent layer keeps of its own parameters; a call with other parameters puts them anew, not forward."""


def check_before(program: nn.Module) -> None:
    """Refuse modules and parameters that cannot be traced as they are."""
    for name, module in program.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                refusal(
                    f"{name.removeprefix('model.')} is a TorchScript module",
                    "",
                    "its Python source is gone, so that it cannot be traced",
                    "give the module from which it was made with torch.jit.script or torch.jit.trace",
                )
            )
    for name, parameter in program.named_parameters():
        kinds = {"register_hook": "_backward_hooks", "register_post_accumulate_grad_hook": "_post_accumulate_grad_hooks"}
        for kind in (kind for kind, attribute in kinds.items() if getattr(parameter, attribute, None)):
            raise CaptureError(
                refusal(
                    f"parameter {name.removeprefix('model.')} has a hook ({kind})",
                    "",
                    "the hook sees the gradient of the whole batch, so what it does to each example is not known",
                    "remove the hook and change step.grads instead, or change the parameter in forward",
                )
            )


def check_after(program: nn.Module, saved: Saved) -> None:
    """Refuse a model whose forward changed numbers or texts of its modules while it was traced."""
    names = {module: name for name, module in program.named_modules()}
    for module, before in saved:
        for attribute, now in vars(module).items():
            if attribute not in OWN and isinstance(now, NUMBERS) and differs(before.get(attribute), now):
                raise CaptureError(
                    refusal(
                        f"forward writes the attribute {path_of(names[module], attribute)}",
                        "",
                        "a trace runs Python once, so that the attribute would keep its value from step to step",
                        "keep such state in a buffer that does not depend on the batch, or change it outside of forward; "
                        "if only a first call sets it, call the model once before",
                    )
                )


def differs(before: Any, now: Any) -> bool:
    """Whether an attribute was changed; NaN is equal to itself here."""
    return before is not now and (type(before) is not type(now) or (before != now and before == before))


def written(program: nn.Module, saved: Saved) -> tuple[str, ...]:
    """Attributes of modules that hold another object than before."""
    names, found = {module: name for name, module in program.named_modules()}, []
    for module, before in saved:
        for attribute, now in vars(module).items():
            is_rebound = now is not before.get(attribute) and not isinstance(now, NUMBERS)
            if is_rebound and attribute not in OWN and attribute not in LISTED_WEIGHTS:
                found.append(path_of(names[module], attribute))
    return tuple(found)


def grown(held: Held) -> tuple[str, ...]:
    """Dicts with new entries, as caches have; refuse a model whose forward changed lists or what was in a dict before."""
    found = []
    for path, container, before in held:
        now = contents(container)
        if isinstance(container, dict) and len(now) > len(before):
            found.append(path)
            now = [entry for entry in now if any(entry[0] is key for key, _ in before)]
        if not is_same(before, now):
            raise CaptureError(changed_list(path))
    return tuple(found)


def registered_in(program: nn.Module) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The parameters, buffers and modules of every module: path, dict, and what stands in it."""
    kinds = ("_parameters", "_buffers", "_modules")
    return [(name, module.__dict__[k], dict(module.__dict__[k])) for name, module in program.named_modules() for k in kinds]


def newly_registered(program: nn.Module, before: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> tuple[str, ...]:
    """Parameters, buffers and modules that forward has put where none or others were."""
    return tuple(path_of(name, n) for name, now, old in before for n, held in now.items() if held is not old.get(n))


@contextlib.contextmanager
def unwritten_tensors(program: nn.Module) -> Iterator[None]:
    """Refuse a forward that writes in place to a tensor that a module holds and that is no buffer; its values are put back."""
    held = [(path, tensor, tensor._version, tensor.detach().clone()) for path, tensor in plain_tensors(program)]
    try:
        yield
    finally:
        changed = [(path, tensor, before) for path, tensor, version, before in held if tensor._version != version]
        with torch.no_grad():
            for _, tensor, before in changed:
                tensor.copy_(before)
    if changed:
        raise CaptureError(in_place(f"the attribute {changed[0][0]}"))


def in_place(what: str) -> str:
    """The refusal of a write to a tensor that no trace carries from step to step."""
    return refusal(
        f"forward writes in place to {what}",
        "",
        "it is neither a buffer nor an argument, so that the graph would find it as it was when it was traced",
        "register it with register_buffer, if what is written does not depend on the batch; or write to it outside of forward",
    )


def plain_tensors(program: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in attributes of modules, and in their lists and dicts, with their paths."""
    for name, module in program.named_modules():
        for attribute, held in vars(module).items():
            if attribute not in OWN and isinstance(held, Tensor):
                yield path_of(name, attribute), held
    for path, _, entries in containers_of(program):
        yield from ((path, item) for entry in entries for item in entry if isinstance(item, Tensor))


@contextlib.contextmanager
def without_python_draws() -> Iterator[None]:
    """Refuse a forward that draws from Python's or NumPy's generators, whose state is left as it was."""
    before: tuple[Any, Any] = random.getstate(), np.random.get_state()
    try:
        yield
        now: tuple[Any, Any] = random.getstate(), np.random.get_state()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    for name, old, new in zip(("Python's random", "numpy.random"), before, now, strict=True):
        if any(not np.array_equal(a, b) for a, b in zip(old[1:], new[1:], strict=True)):
            raise CaptureError(drawn(name))


def drawn(name: str) -> str:
    """The refusal of a number that Python draws."""
    return refusal(
        f"forward draws from {name}",
        "",
        "a trace runs Python once, so that the number that was drawn would be there again at every step",
        "draw with torch (torch.rand), or outside, and give the number as an argument",
    )


def is_same(before: Entries, now: Entries) -> bool:
    """Whether a container holds the same objects in the same order."""
    return [tuple(map(id, entry)) for entry in before] == [tuple(map(id, entry)) for entry in now]


def contents(held: Any) -> Entries:
    """The entries of a container."""
    return list(held.items()) if isinstance(held, dict) else [(item,) for item in held]


def restore(held: Any, before: Entries) -> None:
    """Put these entries back."""
    held.clear()
    if isinstance(held, dict):
        held.update(before)
    elif isinstance(held, set):
        held.update(item for (item,) in before)
    else:
        held.extend(item for (item,) in before)


def containers_of(program: nn.Module) -> Held:
    """Lists, queues, sets and dicts that modules hold, with the path of the attribute and their present entries."""
    return [
        (path_of(name, attribute), held, contents(held))
        for name, module in program.named_modules()
        for attribute, held in vars(module).items()
        if attribute not in OWN and isinstance(held, (list, deque, set, dict))
    ]


def path_of(module: str, attribute: str) -> str:
    """An attribute as the user knows it, from the name of its module within the program."""
    return ".".join(part for part in (module.removeprefix("model").lstrip("."), attribute) if part)


def changed_list(path: str) -> str:
    """The refusal of a list that forward changes."""
    return refusal(
        f"forward changes the contents of the attribute {path}",
        "",
        "a trace runs Python once, so that it would hold the same at every step; and what is kept of one batch for the "
        "next one carries examples' data out of the step",
        "return what is to be kept, and keep it outside of forward",
    )
