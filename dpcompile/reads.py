"""What Python functions read besides their arguments: globals, names they close over, defaults, and so for their helpers.

Functions of the user's own files are followed into the functions that they name, nested ones, lambdas and generator
expressions with them; functions of Python, torch and other libraries count by identity and are not looked into.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

FOLDERS = (os.path.dirname(torch.__file__), os.path.dirname(__file__), sysconfig.get_paths()["stdlib"])
LIBRARIES = (*(folder + os.sep for folder in FOLDERS), "<frozen")
FUNCTIONS = 500
"""So many functions are followed from one; a chain as long as this one is taken to be a library."""
UNREAD = frozenset({"__init__", "__new__", "__repr__", "__str__", "__reduce__", "__getstate__", "__setstate__"})
"""Methods that a call of an object does not come through."""
ENTRIES = (
    "forward",
    "__call__",
    "__getattr__",
    "__getattribute__",
    "__getitem__",
    "__iter__",
    "__len__",
    "__contains__",
    "__bool__",
)


@functools.lru_cache(maxsize=4096)
def is_own_file(name: str) -> bool:
    """Whether a source file is the user's, not of Python, of an installed package or of this one."""
    return not name.startswith(LIBRARIES) and "site-packages" not in name and "dist-packages" not in name


@functools.lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """Globals that a code object and those inside it name, each with the attributes that are taken of it at once."""
    found: dict[tuple[str, ...], None] = {}
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found[(str(step.argval), *attributes_after(steps, place))] = None
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= dict.fromkeys(names_of(inner))
    return tuple(found)


def attributes_after(steps: list[dis.Instruction], place: int) -> Iterator[str]:
    """The chain of attributes that is taken of what was just loaded."""
    for step in steps[place + 1 :]:
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            return
        yield str(step.argval)


@functools.lru_cache(maxsize=4096)
def attributes_of(code: types.CodeType) -> frozenset[str]:
    """Every name that a code object and those inside it use, attributes among them."""
    inner = (attributes_of(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def is_own_function(value: Any) -> bool:
    """A Python function of the user's files."""
    return isinstance(value, types.FunctionType) and is_own_file(value.__code__.co_filename)


def is_own_module(value: types.ModuleType) -> bool:
    """Whether a module is one of the user's files, or made by hand."""
    file = getattr(value, "__file__", None)
    return is_own_file(file) if file else value.__name__ not in sys.builtin_module_names and value.__spec__ is None


def globals_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that a function names and that have a value; of the user's own modules, the attributes that are taken."""
    held = function.__globals__
    for name, *attributes in names_of(function.__code__):
        if name not in held:
            continue
        value = held[name]
        for attribute in attributes:
            if not isinstance(value, types.ModuleType) or not is_own_module(value) or attribute not in vars(value):
                break
            value = vars(value)[attribute]
        if not isinstance(value, types.ModuleType):
            yield name, value


def is_filled(cell: types.CellType) -> bool:
    """Whether a closed-over name has a value yet."""
    try:
        cell.cell_contents  # noqa: B018  (reading it is the test)
    except ValueError:
        return False
    return True


def held_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function carries with it: closed-over names, defaults, attributes; of an own one the globals, too."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if is_filled(cell):
            yield name, cell.cell_contents
    yield from (("default", value) for value in function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()
    if is_own_function(function):
        yield from globals_of(function)


def reads(functions: Iterable[types.FunctionType], known: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """What these functions and the user's functions that they lead to read; functions in `known` were told before."""
    waiting, count = list(functions), 0
    while waiting and count < FUNCTIONS:
        for name, value in held_by(waiting.pop()):
            yield name, value
            if is_own_function(value) and id(value) not in known:
                known[id(value)] = value, value.__code__
                waiting.append(value)
                count += 1


def methods(kind: type, is_entered: bool) -> tuple[list[types.FunctionType], list[tuple[str, Any]]]:
    """The user's methods of a class, and the other values of the class that they use.

    is_entered: only `forward`, `__call__` and what Python calls by itself are called from outside; else every method may be.
    """
    own = [vars(base) for base in kind.__mro__ if is_own_name(base.__module__)]
    waiting = list(ENTRIES) if is_entered else [name for held in own for name in held if name not in UNREAD]
    seen, found, values = set(waiting), dict[int, types.FunctionType](), list[tuple[str, Any]]()
    while waiting:
        name = waiting.pop()
        for value in (held[name] for held in own if name in held):
            functions = [function for function in functions_in(value) if is_own_function(function)]
            found |= {id(function): function for function in functions}
            if not functions and not name.startswith("__"):
                values.append((name, value))
            named = {other for function in functions for other in attributes_of(function.__code__)} - seen
            seen |= named
            waiting += sorted(named)
    return list(found.values()), sorted(values, key=lambda pair: pair[0])


@functools.lru_cache(maxsize=4096)
def is_own_name(name: str) -> bool:
    """Whether the module of this name is one of the user's files."""
    module = sys.modules.get(name)
    return module is None or is_own_module(module)


def functions_in(value: Any) -> Iterator[Any]:
    """The functions of a method, a property, a static or class method, or a decorated function."""
    if isinstance(value, property):
        yield from (part for part in (value.fget, value.fset) if part is not None)
    elif isinstance(value, (functools.cached_property, functools.partialmethod)):
        yield value.func
    else:
        yield getattr(value, "__func__", value)
