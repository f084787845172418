"""What a module's Python attributes say, as hashable values that differ whenever a trace could.

Numbers, strings, types and nested containers count by value; objects with attributes of their own
(configurations) by identity, these attributes and what their class holds; functions by identity and what they and the
user's functions that they lead to read (`reads`); tensors by identity and how often they were written to; parameters and
buffers, whose values every step reads anew, and everything else by identity.
Identity keeps the object alive, so that no later one can take over its address.
"""

from __future__ import annotations

import argparse
import array
import functools
import types
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.reads import is_own_name, methods, reads

PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, type)
NUMBERS = (np.ndarray, array.array, bytearray)  # by their bytes
LIBRARIES = ("builtins", "torch", "typing", "abc")
LONG = 1000  # entries from which on a container counts by identity and length only
DEEP = 5
OWN = frozenset(vars(nn.Module())) - {"training"}
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
CONTAINERS = (Mapping, tuple, list, set, frozenset, deque)
OPEN = (*CONTAINERS, types.SimpleNamespace, argparse.Namespace, types.FunctionType, types.MethodType, functools.partial)
"""Classes of Python's own that hold what the user puts there; of other libraries' objects only the plain attributes count."""


class Same:
    """Equal to the wrapper of the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __str__(self) -> str:
        return f"{type(self.value).__name__} at {id(self.value):#x}"


def of_module(module: nn.Module, known: dict[int, Any]) -> tuple[Any, ...]:
    """Class, identity, hooks, mode and attributes of one module; `known` holds what was told already."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    hooks = tuple((Same(hook), of_value(hook, known, 0)) for kind in kinds for hook in kind.values())
    attributes = tuple((k, of_value(v, known, 0)) for k, v in vars(module).items() if k not in OWN)
    return type(module), id(module), hooks, attributes, of_class(type(module), known)


def of_class(kind: type, known: dict[int, Any]) -> tuple[Any, ...]:
    """What a class and its bases hold: plain values, those of Python and torch aside, and the user's methods with what they
    read."""
    if id(kind) in known:
        return ()
    known[id(kind)] = kind  # told once
    if is_of_libraries(kind):
        return Same(getattr(kind, "forward", None)), (), (), ()
    own = (base for base in kind.__mro__ if base.__module__.split(".")[0] not in LIBRARIES)
    plain = tuple((name, value) for base in own for name, value in vars(base).items() if is_plain(name, value))
    functions, values = methods(kind, issubclass(kind, nn.Module))
    known |= {id(function): of_code(function) for function in functions}
    read = of_reads((*reads(functions, known), *values), known, 1)
    return Same(getattr(kind, "forward", None)), plain, tuple(map(of_code, functions)), read


@functools.lru_cache(maxsize=4096)
def is_of_libraries(kind: type) -> bool:
    """Whether a class and its bases are Python's and torch's own, and no file of the user's."""
    places = [base.__module__ for base in kind.__mro__]
    return all(place.split(".")[0] in LIBRARIES and not is_own_name(place) for place in places)


def of_code(function: types.FunctionType) -> tuple[Same, Same]:
    """A function by itself and its code, which tools that reload sources exchange."""
    return Same(function), Same(function.__code__)


def of_reads(pairs: Iterable[tuple[str, Any]], known: dict[int, Any], depth: int) -> tuple[Any, ...]:
    """Names and stand-ins of what functions read."""
    return tuple((name, of_read(value, known, depth)) for name, value in pairs)


def of_read(value: Any, known: dict[int, Any], depth: int) -> Any:
    """Like `of_value`; but a class by what it holds, and an object of a library without its inner life."""
    if isinstance(value, type):
        return value, of_class(value, known)
    if isinstance(value, (*PLAIN, float, Tensor, nn.Module, *NUMBERS, *OPEN)) or is_own_name(type(value).__module__):
        return of_value(value, known, depth)
    if hasattr(value, "__wrapped__"):
        return Same(value), of_value(value.__wrapped__, known, depth)
    return Same(value), tuple((name, held) for name, held in own_attributes(value).items() if is_plain(name, held))


def is_plain(name: str, value: Any) -> bool:
    """A number or text of a class or module that is not Python's own."""
    return not name.startswith("__") and isinstance(value, (bool, int, float, str))


def of_value(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A hashable stand-in for one attribute."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, float):
        return float, repr(value)  # NaN would differ from itself, and -0.0 not from 0.0
    if isinstance(value, Tensor):
        return of_tensor(value, known)
    if isinstance(value, SYMBOLS):
        raise fakes_left("")
    if id(value) in known:
        return known[id(value)]
    if depth == DEEP:
        return Same(value)
    if isinstance(value, nn.Module):
        return of_modules(value, known)
    if isinstance(value, NUMBERS):
        written = bytes(value) if isinstance(value, bytearray) else value.tobytes()
        return Same(value), getattr(value, "shape", None), hash(written)
    if callable(value):
        known[id(value)] = Same(value)
        return of_callable(value, known, depth + 1)
    if not isinstance(value, (tuple, list)):
        known[id(value)] = Same(value)  # its contents are told once: modules share configurations
    return of_contents(value, known, depth + 1)


def of_modules(value: nn.Module, known: dict[int, Any]) -> Any:
    """A module that is no part of the program, and those inside; this package's own, which hold compiled steps, by identity.

    So are its buffers: a graph reads their present values, and an average of the model has other ones after every step.
    """
    if type(value).__module__.split(".")[0] == __name__.split(".")[0]:
        return Same(value)
    inside = [module for module in value.modules() if id(module) not in known]
    known |= {id(module): Same(module) for module in inside}
    tensors = [tensor for module in inside for tensor in (*module._parameters.values(), *module._buffers.values())]
    told = tuple(of_module(module, known) for module in inside)
    return told, tuple(Same(tensor) for tensor in tensors if tensor is not None)


def of_mode(mode: Any) -> tuple[Any, ...]:
    """A mode of torch around the call by its class and what it holds: the same mode may be made anew for every call."""
    return type(mode), tuple((name, of_value(held, {}, 1)) for name, held in own_attributes(mode).items())


def of_tensor(value: Tensor, known: dict[int, Any]) -> Any:
    """A tensor and how often it was written to, for Python may have read its value; parameters and buffers by themselves."""
    if isinstance(value, nn.Parameter) or id(value) in known:
        return Same(value)
    if torch_private.is_fake(value):
        raise fakes_left("")
    return Same(value), 0 if value.is_inference() else value._version


def fakes_left(line: str) -> CaptureError:
    """The refusal of a program that has kept tensors of its trace, which hold no data."""
    return CaptureError(
        refusal(
            "forward or the loss keeps tensors of one call outside of the attributes of its modules",
            line,
            "a trace runs Python without data, so that what it leaves in a global, a cached function, an attribute of a class or "
            "a nested container cannot be used by a later call",
            "compute it in every call, or keep it outside of forward and loss; make the kept objects anew after this refusal",
        )
    )


def of_callable(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A function by itself and what it reads; others by their attributes."""
    if isinstance(value, functools.partial):
        return Same(value), tuple(of_value(part, known, depth) for part in (value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return of_value(value.__func__, known, depth), of_value(value.__self__, known, depth)
    if isinstance(value, types.FunctionType):
        return of_code(value), of_reads(reads([value], known), known, depth)
    return of_contents(value, known, depth)


def of_contents(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A container by its entries, any other object by identity and attributes."""
    if isinstance(value, CONTAINERS):
        if len(value) > LONG:
            return Same(value), len(value), hash(repr(value))
        if isinstance(value, Mapping):
            return type(value), tuple((str(k), of_value(v, known, depth)) for k, v in value.items())
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(of_value(item, known, depth) for item in value)
        return type(value), tuple(of_value(item, known, depth) for item in value)
    attributes = own_attributes(value)
    if len(attributes) > LONG:
        return Same(value)
    return Same(value), tuple((k, of_value(v, known, depth)) for k, v in attributes.items()), of_class(type(value), known)


def own_attributes(value: Any) -> dict[str, Any]:
    """Attributes of an object, those in slots too."""
    slots = [name for base in type(value).__mro__ for name in listed(vars(base).get("__slots__", ()))]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    attributes = getattr(value, "__dict__", None)
    return held | dict(attributes) if isinstance(attributes, dict) else held


def listed(slots: Any) -> tuple[str, ...]:
    """The names of slots, of which one may be a text."""
    return (slots,) if isinstance(slots, str) else tuple(slots)
