"""The prices of one parameter's options as formulas and numbers, and where one option overtakes another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sympy

from dpcompile.cost.hardware import Hardware
from dpcompile.cost.prices import complete, sizes_of
from dpcompile.cost.roofline import seconds, work_seconds
from dpcompile.ir.cost import BLOCKS, NUMBERS, Cost, T
from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels.dense import TILE
from dpcompile.plan.plan import Choice, Option, Plan
from dpcompile.plan.select import cost_of
from dpcompile.strategies import NORMS, SUMS

NAMES = {"matrix_flops": "matrix FLOPs", "other_flops": "other FLOPs", "bytes_moved": "bytes moved",
         "fresh_bytes": "bytes allocated", "launches": "launches"}  # fmt: skip
LONGEST = 2**14
REGIMES = ((sympy.Integer(1), 1, TILE), (T / TILE, TILE, 8 * TILE), (sympy.Integer(8), 8 * TILE, LONGEST))
"""Number of blocks of a Gram matrix, between which positions."""


def formula(plan: Plan, hardware: Hardware, parameter: str) -> str:
    """All options of a parameter, the chosen one first, and the break-even points with it."""
    found = {choice.site.parameter: choice for choice in plan.choices}
    if parameter not in found:
        raise InvalidInput(f"{parameter!r} is not a parameter with a gradient; the plan has {', '.join(found)}")
    choice, size = found[parameter], plan.at_a_time(plan.batch_size)
    sizes = sizes_of(choice.site, size)
    shown = ", ".join(f"{name}={number:g}" for name, number in sizes[0].items() if number != 1 or name in "BT")
    lines = [f"{choice.site.parameter}  {choice.site.equation}  {list(choice.site.shape)}", f"  {shown}"]
    for option in (choice.option, *sorted(choice.others, key=lambda option: option.seconds)):
        lines += described(choice, option, hardware, sizes, option is choice.option)
    lines += list(break_even_points(choice, hardware, sizes))
    return "\n".join(lines) + "\n"


def described(choice: Choice, option: Option, hardware: Hardware, sizes: list[dict[str, float]], chosen: bool) -> list[str]:
    """One option: its kernels, each with its formulas."""
    cost = formulas(choice, option)
    mark, how = " (chosen)" if chosen else "", "measured" if option.measured else "predicted"
    lines = [f"{option.norm}+{option.sum}{mark}: {option.seconds * 1e6:.0f} us {how} on {hardware.name}"]
    for work, numbers in zip(cost.work, cost.at(sizes).work, strict=True):
        lines.append(f"  {work.form}: {work_seconds(numbers, hardware) * 1e6:.0f} us")
        lines += [f"    {NAMES[n]} = {getattr(work, n)} = {getattr(numbers, n):.4g}" for n in NUMBERS if getattr(numbers, n)]
    kept = cost.at(sizes)
    lines.append(f"  keeps {cost.resident_bytes} = {kept.resident_bytes:.4g} bytes; "
                 f"works in {cost.workspace_bytes} = {kept.workspace_bytes:.4g} bytes")  # fmt: skip
    return lines


def formulas(choice: Choice, option: Option) -> Cost:
    """The symbolic cost of an option."""
    return cost_of(choice.site, NORMS[option.norm], SUMS[option.sum])


def break_even_points(choice: Choice, hardware: Hardware, sizes: list[dict[str, float]]) -> Iterator[str]:
    """Positions per example at which another option needs as many matrix FLOPs, or as much time, as the chosen one."""
    chosen = formulas(choice, choice.option)
    for option in choice.others:
        other = formulas(choice, option)
        names = f"{choice.option.norm}+{choice.option.sum} and {option.norm}+{option.sum}"
        for root, value in flop_roots(chosen, other, sizes[0]):
            yield f"{names}: equal matrix FLOPs at T = {root} = {value:.4g}"
        crossing = crossing_point(timed(chosen, hardware, sizes), timed(other, hardware, sizes))
        if crossing is not None:
            yield f"{names}: the order of predicted times on {hardware.name} changes at T = {crossing}"


def flop_roots(left: Cost, right: Cost, sizes: dict[str, float]) -> Iterator[tuple[sympy.Expr, float]]:
    """T with equal matrix FLOPs, solved as a formula in the other sizes, without rounding to whole blocks."""
    difference = (total(left) - total(right)).replace(sympy.floor, lambda quotient: quotient)
    difference = difference.subs({s: 1 for s in difference.free_symbols if sizes[str(s)] == 1 and s not in (T, BLOCKS)})
    for blocks, low, high in REGIMES:
        for root in sympy.solve(sympy.expand(difference.subs(BLOCKS, blocks) / T), T):
            value = root.subs({symbol: sizes[str(symbol)] for symbol in root.free_symbols})
            if value.is_real and low < value <= high:
                yield root, float(value)


def total(cost: Cost) -> sympy.Expr:
    """Matrix FLOPs of all work."""
    return sympy.sympify(cost.total("matrix_flops"))


def timed(cost: Cost, hardware: Hardware, sizes: list[dict[str, float]]) -> Callable[[int], float]:
    """Predicted seconds as a function of the positions per example."""

    def at(positions: int) -> float:
        changed = [complete({**s, "T": float(positions), "T_in": float(positions)}) for s in sizes]
        return seconds(cost.at(changed), hardware)

    return at


def crossing_point(left: Callable[[int], float], right: Callable[[int], float]) -> int | None:
    """The smallest T from which on the order of two options is another one than at T = 1."""

    def ordered(positions: int) -> bool:
        return left(positions) <= right(positions)

    low = 1
    while 2 * low <= LONGEST and ordered(2 * low) == ordered(1):
        low *= 2
    if 2 * low > LONGEST:
        return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ordered(middle) == ordered(1) else (low, middle)
    return high
