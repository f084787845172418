"""Generic samples of every operation that torch tags as pointwise and that has no row of its own."""

from __future__ import annotations

from typing import Any

import torch
from meaning import (
    N,
    Operand,
    Sample,
    batched,
    booleans,
    call,
    integers,
    position,
    positive,
    results,
    shared,
    summed,
)

from dpcompile.rules import OPS
from dpcompile.rules.pointwise import is_pointwise

aten = torch.ops.aten
NUMBERS = {"number": 2, "float": 0.5, "int": 1, "bool": False}
DRAWS = (positive, integers(7), booleans)


def arguments(op: Any, operands: list[Operand]) -> list[Any] | None:
    """Positional arguments: the operands in turn, plain numbers, nothing for what is optional."""
    rest = iter(operands)
    found: list[Any] = []
    for argument in op._schema.arguments:
        kind = str(argument.type)
        if argument.kwarg_only or (argument.has_default_value() and kind not in ("Tensor", "number")):
            break
        if kind == "Tensor":
            found.append(next(rest))
        elif kind.removeprefix("Optional[").removesuffix("]") in NUMBERS:
            found.append(NUMBERS[kind.removeprefix("Optional[").removesuffix("]")])
        else:
            return None
    return found


def samples_of(op: Any) -> tuple[Sample, ...]:
    """Agreeing and shared operands, a sum, a position; examples first, last and folded. Empty where nothing can be run."""
    named: dict[str, dict[str, Any]] = {"div": {"rounding_mode": "floor"}, "round": {"decimals": 1}, "gelu": {}}
    options = (
        named.get(op._schema.name.removeprefix("aten::"), {})
        if op._overloadname in ("Tensor_mode", "Scalar_mode", "decimals")
        else {}
    )
    for draw in DRAWS:
        x, y = batched(N, 5, draw=draw), shared(5, draw=draw)
        rows = ([x, y, x], [batched(3, N, draw=draw)] * 3, [batched(N, 5, inner=2, draw=draw)] * 3, [x, x, x], [shared(1, draw=draw), x, x],
                [batched(N, 5, inner=2, draw=draw), batched(N, 5, outer=2, draw=draw), batched(N, 5, inner=2, draw=draw)])  # fmt: skip
        made = [arguments(op, row) for row in rows]
        if made[0] is None:
            return ()
        folds = {id(made[-1])}  # comparisons may be equal by chance
        samples = [call(op, *args, cautious=id(args) in folds, **options) for args in made if args is not None]
        if results(samples[0], (0, 1, 2)):
            odd = [[summed(5, draw=draw), y, y]] if draw is not booleans else []
            odd += [[position(N, 5), y, y]] if draw is not booleans else []
            extra = [call(op, *args, **options) for args in (arguments(op, row) for row in odd) if args is not None]
            return (*samples, *(s for s in extra if results(s, (0, 2)) and results(s, (0, 1, 2))))
    return ()


def pointwise_calls() -> dict[Any, tuple[Sample, ...]]:
    """Samples by operation, for all that can be called in this way."""
    found = {}
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else []:
            op = getattr(packet, overload)
            if is_pointwise(op) and op not in OPS and (samples := samples_of(op)):
                found[op] = samples
    return found


POINTWISE_CALLS = pointwise_calls()
