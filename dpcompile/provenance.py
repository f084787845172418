"""Where a node comes from: the module path and the user's source line, carried from forward to backward."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import nn
from torch.overrides import TorchFunctionMode

from dpcompile import torch_private
from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program, public_name

COTANGENT = "cotangent_of_losses"
"""Annotation of the node that backward starts from."""

BACKWARD_LINE = "line_of_backward"
"""Annotation of nodes that a custom function or a hook makes in backward."""

LIBRARIES = (*(os.path.dirname(file) + os.sep for file in (str(torch.__file__), __file__)), "<frozen", "<string>")

COMMAND_LINE = os.path.join(os.path.dirname(__file__), "__main__.py")
"""Whoever calls this file is not the user's code."""


@contextlib.contextmanager
def annotated_modules(program: Program) -> Iterator[None]:
    """Mark every node with the path of the innermost module that is running."""
    handles, stack = [], []
    for path, module in program.named_modules():

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            stack.append(fx_traceback.annotate({"module_path": path}))
            stack[-1].__enter__()

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            stack.pop().__exit__(None, None, None)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        while stack:  # a forward that raised left its annotations open: hooks do not follow exceptions while tracing
            stack.pop().__exit__(None, None, None)
        for handle in handles:
            handle.remove()


def is_user_file(name: str) -> bool:
    """Whether a file belongs to the user (or to a model library), not to torch or to this package."""
    return not name.startswith(LIBRARIES)


def caller() -> str:
    """The innermost frame of the user's code, as `file:line  code`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back if frame.f_code.co_filename != COMMAND_LINE else None
    if frame is None:
        return ""
    name, number = frame.f_code.co_filename, frame.f_lineno
    return f"{name}:{number}  {linecache.getline(name, number).strip()}".strip()


def caller_within() -> Callable[[], str]:
    """`caller` for lines that are run from here on; empty where the innermost one is still the present one."""
    outside = caller()

    def line() -> str:
        found = caller()
        return "" if found == outside else found

    return line


class SourceLines(TorchFunctionMode):
    """Mark every node with the user's line that called torch; torch's own traces keep `forward` frames only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with fx_traceback.annotate({"source_line": caller()}):
            return func(*args, **(kwargs or {}))


def lines_of_backward() -> torch_private.Around:
    """A context that marks the nodes of custom functions and hooks in backward; others belong to their forward node."""
    line = caller_within()

    def marked() -> contextlib.AbstractContextManager[Any]:
        found = line()
        return fx_traceback.annotate({BACKWARD_LINE: found}) if found else contextlib.nullcontext()

    return torch_private.Around(marked)


def record_places(joint: JointGraph) -> None:
    """Put `module_path` and `source_line` on every node; backward nodes take their forward node's by sequence number.

    torch.autograd.grad is called from one line, which says nothing of its nodes. Sums of gradients have no number of their
    own but that of the losses; they belong to where the node before them does.
    """
    places: dict[int, tuple[str, str]] = {}
    is_backward, losses = False, -1
    for node in joint.graph.nodes:
        annotation, number = node.meta.get("custom") or {}, node.meta.get("seq_nr", -1)
        if COTANGENT in annotation:
            is_backward, losses = True, number
        if "module_path" not in annotation and (is_backward or "source_line" not in annotation):
            continue
        path, line = annotation.get("module_path", ""), annotation.get("source_line", "")
        place = public_name(path) if path != "model" else "", line
        node.meta["module_path"], node.meta["source_line"] = place
        places.setdefault(number, place)
    spread_places(joint, {number: place for number, place in places.items() if number not in (-1, None)}, losses)


def spread_places(joint: JointGraph, places: Mapping[int, tuple[str, str]], losses: int) -> None:
    """Places for the nodes that have none: their forward node's, or those of the node before."""
    last, is_backward = ("", ""), False
    for node in joint.graph.nodes:
        if node.op != "call_function":
            continue
        is_backward = is_backward or COTANGENT in (node.meta.get("custom") or {})
        number = node.meta.get("seq_nr", -1)
        path, line = last if is_backward and number == losses else places.get(number, last)
        line = (node.meta.get("custom") or {}).get(BACKWARD_LINE, line)
        node.meta.setdefault("module_path", path)
        node.meta.setdefault("source_line", line)
        last = node.meta["module_path"], node.meta["source_line"]
