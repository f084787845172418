"""Choose per site the fastest possible option, or what the user asked for; say why, and why not the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch

from dpcompile.cost.hardware import Hardware
from dpcompile.cost.prices import sizes_of
from dpcompile.cost.roofline import seconds
from dpcompile.ir.cost import Cost
from dpcompile.ir.errors import StrategyError
from dpcompile.ir.site import Cut, Site
from dpcompile.plan.budget import fastest_within, leanest
from dpcompile.plan.methods import METHODS
from dpcompile.plan.plan import Choice, Option, Plan
from dpcompile.strategies import NORMS, SUMS, interval
from dpcompile.strategies.apart import misfit
from dpcompile.strategies.emitter import dtype_of
from dpcompile.strategies.materialize import is_same_norm
from dpcompile.strategies.ordinary import ORDINARY, SCALE
from dpcompile.strategies.reweight import REWEIGHT
from dpcompile.strategies.strategy import NormStrategy, SumStrategy
from dpcompile.strategies.sums import REUSE

Wanted = str | Mapping[str, str | tuple[str, str]]
Way = tuple[str, str, str]
"""Parameter, norm, sum."""
EMPTY: Mapping[Way, float] = MappingProxyType({})


def choose(sites: Sequence[Site], hardware: Hardware, batch_size: int, strategy: Wanted = "auto",
           microbatch: int | None = None, limit: float = math.inf, cut: Cut | None = None,
           measured: Mapping[Way, float] = EMPTY) -> Plan:  # fmt: skip
    """The plan for these sites on this hardware at this batch size: the fastest that keeps at most `limit` bytes until the
    clipped sums, or the leanest if none does; backward runs a second time behind `cut`; `measured` seconds take the place
    of predicted ones."""
    check_names(strategy, sites)
    size = min(microbatch or batch_size, max(batch_size, 1))
    behind = set(cut.parameters) if cut is not None else set()
    priced = [options_of(site, hardware, size, site.parameter in behind, microbatch == 1) for site in sites]
    possible = [(with_measured(site, options, measured), no) for site, (options, no) in zip(sites, priced, strict=True)]
    wanted = [
        fitting_options(site, options, declined, wanted_for(site, strategy))
        for site, (options, declined) in zip(sites, possible, strict=True)
    ]
    taken = fastest_within(wanted, limit) or leanest(wanted)
    choices = tuple(
        Choice(site, best, reason(best, options, is_asked(site, strategy, best)), others(best, options), tuple(declined))
        for site, best, (options, declined) in zip(sites, taken, possible, strict=True)
    )
    if isinstance(strategy, str) and strategy != "auto" and not any(c.option.norm == strategy for c in choices):
        reasons = {dict(choice.declined).get(strategy, "") for choice in choices}
        raise StrategyError(
            f"strategy {strategy!r} cannot be applied to any parameter of this model "
            f"({'; '.join(sorted(filter(None, reasons)))}). "
            'Use strategy="auto", or another of ' + ", ".join(NORMS)
        )
    return Plan(choices, hardware.name, batch_size, microbatch, cut)


def check_names(strategy: Wanted, sites: Sequence[Site]) -> None:
    """Refuse names that do not exist."""
    entries = strategy.values() if isinstance(strategy, Mapping) else ()
    keys = strategy if isinstance(strategy, Mapping) else ()
    if not isinstance(strategy, (str, Mapping)) or not all(map(is_entry, entries)) or not all(isinstance(k, str) for k in keys):
        raise StrategyError(f"strategy must be a name or {{parameter or glob: norm or (norm, sum)}}, got {strategy!r}")
    names = (
        [strategy] if isinstance(strategy, str) else [n for v in strategy.values() for n in ((v,) if isinstance(v, str) else v)]
    )
    for name in names:
        if name == "autotune" or (name in METHODS and name not in SUMS):
            raise StrategyError(f'strategy="{name}" is for the whole model; name norms and sums for single parameters')
        if name not in ("auto", *NORMS, *SUMS):
            known = f"use auto or autotune; methods: {', '.join(METHODS)}; norms: {', '.join(NORMS)}; sums: {', '.join(SUMS)}"
            raise StrategyError(f"there is no strategy {name!r}; {known}")
    for norm in [strategy] if isinstance(strategy, str) else [v if isinstance(v, str) else v[0] for v in strategy.values()]:
        if norm in SUMS:
            raise StrategyError(f'{norm!r} is a sum, and belongs to a norm: strategy={{"*": ("auto", {norm!r})}}, for example')
    if not isinstance(strategy, str):
        for pattern in strategy:
            if not any(matches(site.parameter, pattern) for site in sites):
                raise StrategyError(f"strategy names {pattern!r}, which matches no parameter of the model")


def is_entry(value: object) -> bool:
    """A norm, or a norm and a sum."""
    return isinstance(value, str) or (isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, str) for n in value))


def matches(parameter: str, pattern: str) -> bool:
    """Whether a name or a glob is this parameter's."""
    return parameter == pattern or fnmatchcase(parameter, pattern)


def wanted_for(site: Site, strategy: Wanted) -> tuple[str, str, bool]:
    """(norm, sum, is it required): a single name applies where it can, a mapping must apply."""
    if isinstance(strategy, str):
        return strategy, "auto", False
    exact = {site.parameter: strategy[site.parameter]} if site.parameter in strategy else {}
    for pattern, value in (exact or strategy).items():  # a name comes before any glob, and may hold a glob's characters
        if matches(site.parameter, pattern):
            norm, total = (value, "auto") if isinstance(value, str) else value
            return norm, total, True
    return "auto", "auto", False


def fitting_options(site: Site, options: list[Option], declined: list[tuple[str, str]],
                    wanted: tuple[str, str, bool]) -> list[Option]:  # fmt: skip
    """The options among which the plan chooses: those that were asked for, all where none of them fits."""
    norm, total, required = wanted
    if not options:
        reasons = "; ".join(dict.fromkeys(why for way, why in declined if way.endswith(f"+{REWEIGHT.name}")))
        raise StrategyError(
            f"a second backward pass (two-pass, reweight) has no norm of {site.parameter} beside it whose rounding is bounded: "
            f'{reasons}. Use schedule="one-pass", and no sum by "reweight"'
        )
    fitting = [o for o in options if norm in ("auto", o.norm) and total in ("auto", o.sum)]
    if not fitting and required:
        why = dict(declined)
        text = why.get(norm) or why.get(f"{norm}+{total}", f"the sum {total} does not fit the norm {norm}")
        raise StrategyError(f"strategy ({norm}, {total}) cannot be applied to {site.parameter}: {text}")
    return fitting or options


def is_asked(site: Site, strategy: Wanted, best: Option) -> bool:
    """Whether the user asked for this option's norm."""
    norm, _, _ = wanted_for(site, strategy)
    return norm == best.norm


def others(best: Option, options: Sequence[Option]) -> tuple[Option, ...]:
    """The options that were not taken."""
    return tuple(option for option in options if option is not best)


def options_of(site: Site, hardware: Hardware, batch_size: int,
               again: bool = False, alone: bool = False) -> tuple[list[Option], list[tuple[str, str]]]:  # fmt: skip
    """Every norm with every sum that fits it, priced, and the reasons of those that do not fit; with `again` the sum comes
    from a second backward; `alone`: examples come one at a time."""
    options: list[Option] = []
    declined: list[tuple[str, str]] = []
    computed = torch.promote_types(dtype_of(site.gradient), torch.float32)  # every kernel of ours widens half types first
    sizes, dtype = sizes_of(site, batch_size), str(computed).removeprefix("torch.")
    for norm in NORMS.values():
        reason = None if alone and not again and norm is ORDINARY else norm.declines(site)
        if reason is not None:
            declined.append((norm.name, reason))
            continue
        for total in (SCALE,) if norm is ORDINARY else (REWEIGHT,) if again else SUMS.values():
            first = site.terms[0].contraction
            refused = total.declines(first, norm) if total is REWEIGHT and not again else misfit(site, norm, total)
            if refused is not None:
                declined.append((f"{norm.name}+{total.name}", refused))
                continue
            cost = cost_of(site, norm, total).at(sizes)
            options.append(Option(norm.name, total.name, cost, seconds(cost, hardware, dtype)))
    return options, declined


def with_measured(site: Site, options: list[Option], measured: Mapping[Way, float]) -> list[Option]:
    """Measured seconds where there are any; predictions of the others are off by as much as those of the measured ones."""
    found = {o: measured[site.parameter, o.norm, o.sum] for o in options if (site.parameter, o.norm, o.sum) in measured}
    if not found:
        return options
    off = statistics.median(spent / option.seconds for option, spent in found.items())
    return [replace(o, seconds=found[o], measured=True) if o in found else replace(o, seconds=off * o.seconds) for o in options]


def cost_of(site: Site, norm: NormStrategy, total: SumStrategy) -> Cost:
    """The formulas of one way for a site: the norm, then a sum for every contraction."""
    cost = norm.cost(site) + interval.cost(site, norm, total)
    once = total is REUSE and not is_same_norm(site)  # what comes out of the tail is added up, and not its parts
    for index, term in enumerate(site.terms[:1] if once else site.terms):
        part = total.cost(term.contraction, norm)
        cost += Cost(tuple(work.of(index) for work in part.work), part.resident_bytes, part.workspace_bytes)
    return cost


def reason(best: Option, options: Sequence[Option], asked: bool) -> str:
    """One sentence: asked for, or how the next best option compares."""
    if asked:
        return "asked for"
    rest = others(best, options)
    if not rest:
        return "the only way"
    second = min(rest, key=lambda option: option.seconds)
    ratio = second.seconds / max(best.seconds, 1e-12)
    how = "measured" if best.measured and second.measured else "predicted"
    if ratio < 1:
        return f"keeps less memory than {second.norm}+{second.sum}, which is {how} {1 / ratio:.2f}x faster"
    return f"{second.norm}+{second.sum} is {how} {ratio:.{1 if ratio >= 1.05 else 2}f}x slower"
