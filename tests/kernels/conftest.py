"""Tracing of kernels as inductor gets them: one graph with a free batch size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.testing import assert_close

from dpcompile import torch_private

HINTS = (11, 23)
"""On both sides of 16, where torch's choice of a convolution backend changes and leaves a guard."""

Inputs = Callable[[int], tuple[Any, ...]]
CheckTraceable = Callable[[Callable[..., Any], Inputs], None]


@pytest.fixture
def check_traceable() -> CheckTraceable:
    """Trace function(*inputs(5)); the graph must leave B free and agree with the function at other sizes.

    Every tensor among the inputs has the examples in its first dimension; everything else is a constant.
    """

    def check(function: Callable[..., Any], inputs: Inputs) -> None:
        graph, other = (trace(function, inputs(5), hint) for hint in HINTS)
        assert graph.code == other.code
        for size in (1, 2, 7):
            arguments = inputs(size)
            tensors = [x for x in arguments if isinstance(x, Tensor)]
            assert_close(graph(*tensors), function(*arguments), rtol=1e-4, atol=1e-4)

    return check


def trace(function: Callable[..., Any], arguments: tuple[Any, ...], hint: int) -> fx.GraphModule:
    """The graph of a function; no condition on the batch size may hold at both hints."""
    mode = torch_private.new_fakes()
    fakes = [torch_private.fake(mode, x, 0, hint) for x in arguments if isinstance(x, Tensor)]

    def program(*tensors: Tensor) -> Any:
        for tensor in tensors[1:]:
            torch._check(tensor.shape[0] == tensors[0].shape[0])
        return function(*merge(arguments, tensors))

    with torch_private.tracing_context(mode):
        graph = torch_private.trace(program, fakes)
    assert not [size for size in torch_private.specialised(mode).values() if size.is_number]
    for guard in torch_private.guards(mode):
        values = {guard.subs(dict.fromkeys(guard.free_symbols, size)) for size in HINTS}
        assert len(values) == 2 or all(side.is_Symbol for side in guard.args), f"traced only where {guard}"
    return graph


def merge(arguments: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> list[Any]:
    """The arguments with their tensors replaced in order."""
    remaining = iter(tensors)
    return [next(remaining) if isinstance(x, Tensor) else x for x in arguments]
