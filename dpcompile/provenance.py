"""Where a node comes from: the module path and the user's source line, carried from forward to backward."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import nn

from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program, public_name

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n\s+(?P<code>[^\n]+))?')
LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(__file__), "<frozen", "<string>")


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


def source_line(stack_trace: str) -> str:
    """The innermost user's frame of a stack trace, as `file:line  code`."""
    frames = [match for match in FRAME.finditer(stack_trace) if is_user_file(match["file"])]
    if not frames:
        return ""
    frame = frames[-1]
    return f"{frame['file']}:{frame['line']}  {(frame['code'] or '').strip()}".strip()


def record_places(joint: JointGraph) -> None:
    """Put `module_path` and `source_line` on every node; backward nodes take their forward node's by sequence number."""
    places: dict[int, tuple[str, str]] = {}
    for node in joint.graph.nodes:
        annotation = (node.meta.get("custom") or {}).get("module_path")
        line = source_line(node.stack_trace or "")
        if annotation is not None:
            node.meta["module_path"] = public_name(annotation) if annotation != "model" else ""
        if line:
            node.meta["source_line"] = line
            number = node.meta.get("seq_nr")
            if number is not None:
                places.setdefault(number, (node.meta.get("module_path", ""), line))
    last = ("", "")
    for node in joint.graph.nodes:
        if node.op != "call_function":
            continue
        path, line = places.get(node.meta.get("seq_nr", -1), last)
        node.meta.setdefault("module_path", path)
        node.meta.setdefault("source_line", line)
        last = node.meta["module_path"], node.meta["source_line"]
